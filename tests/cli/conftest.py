"""A small trained run, made once for all commands, and the check of mistakes."""

import pytest

from tests import tiny_run
from vfnet_tf.cli.__main__ import main
from vfnet_tf.inference import load


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    """Nothing is written to the user's cache or where the tests were started."""
    monkeypatch.setenv("VFNET_TF_CACHE", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory):
    return tiny_run.write_run(tmp_path_factory.mktemp("cli") / "run")


@pytest.fixture(scope="module")
def traced(run_dir):
    """Lets commands take a detector whose graphs exist, instead of loading one."""
    load_really = load.load_checkpoint

    def load_quickly(path, config=None):
        if path != run_dir:
            return load_really(path, config)
        weights = run_dir / "best.weights.h5"
        return tiny_run.shared_detector(), tiny_run.tiny_config(), weights

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load, "load_checkpoint", load_quickly)
        yield


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return tiny_run.write_coco(tmp_path_factory.mktemp("cli") / "data")


@pytest.fixture
def mistake(request, capsys):
    """Runs a command that must end in one message on stderr, and returns the message.

    RUN and DATA among the arguments stand for the run directory and the small set.
    """

    def run(*arguments):
        for name, fixture in (("RUN", "run_dir"), ("DATA", "data")):
            if any(name in str(argument) for argument in arguments):
                place = str(request.getfixturevalue(fixture))
                arguments = [str(one).replace(name, place) for one in arguments]
        capsys.readouterr()
        assert main([*map(str, arguments)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and "Traceback" not in error
        return error

    return run
