import dataclasses
import importlib
import os
import pathlib
import struct
import subprocess
import sys
import types
import warnings

import pytest
from PIL import Image

import vfnet_tf
from vfnet_tf.cli import __main__ as cli
from vfnet_tf.data.images.numpy_decode import load_image

ROOT = pathlib.Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Options:
    epochs: int | None = None


@pytest.fixture
def command(monkeypatch):
    """Puts a function of `Options` in the place of the command `train`."""

    def install(run):
        module = types.ModuleType("vfnet_tf.cli.train")
        module.OPTIONS, module.run = Options, run
        monkeypatch.setitem(sys.modules, "vfnet_tf.cli.train", module)

    return install


def test_help_names_every_command(capsys):
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    for name in ("train", "evaluate", "oracle", "predict", "export", "convert"):
        assert f"\n  {name} " in text


def test_no_command_and_an_unknown_one_are_mistakes(capsys):
    assert cli.main([]) == 2
    assert cli.main(["trian"]) == 2
    error = capsys.readouterr().err
    names = ", ".join(cli.COMMANDS)
    assert error == f"error: the command must be one of {names}. Received: trian\n"


def test_the_version_is_the_packages(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"vfnet_tf {vfnet_tf.__version__}\n"


def test_a_command_gets_its_options_its_name_and_returns_its_status(command):
    seen = []
    command(lambda options: seen.append((options, sys.argv[0])) or 7)
    program = sys.argv[0]
    assert cli.main(["train", "--epochs", "3"]) == 7
    [(options, name)] = seen
    assert isinstance(options, Options) and name == "vfnet train"
    assert (options.epochs, options.debug) == (3, False)
    assert sys.argv[0] == program
    # `run` of a command may return nothing.
    command(lambda options: None)
    assert cli.main(["train"]) == 0


@pytest.mark.parametrize(
    "error",
    [
        ValueError("`epochs` must be >= 1. Received: epochs=0"),
        FileNotFoundError(2, "No such file", "/nowhere"),
        ImportError("faster-coco-eval is not installed"),
    ],
)
def test_a_mistake_of_the_user_is_one_message_and_status_2(command, capsys, error):
    def fail(options):
        raise error

    command(fail)
    assert cli.main(["train"]) == 2
    assert capsys.readouterr().err == f"error: {error}\n"
    assert cli.main(["train", "--debug"]) == 2
    shown = capsys.readouterr().err
    assert "Traceback" in shown and shown.endswith(f"error: {error}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        "scan data --out ram://b/x",
        "convert-data data --to coco --out gs://b/x",
        "train --out=gs://b/x",
        "train --preview gs://b/x",
        "study table2 --out gs://b/x",
        "swa run --out gs://b/x",
        "swa gs://b/x",
        "swa run --checkpoints a.weights.h5 gs://b/x",
        "evaluate --checkpoint run --out gs://b/x",
        "evaluate --checkpoint run --report s3://b/x",
        "compare run gs://b/x",
        "compare run run --out gs://b/x",
        "oracle --checkpoint run --out gs://b/x",
        "predict a.jpg --out gs://b/x",
        "export run --out gs://b/x",
        "export run --serving gs://b/x",
        "demo gs://b/x",
        "convert gs://b/x --out y",
        "benchmark saved --json gs://b/x",
    ],
)
def test_a_url_is_refused_where_only_a_local_path_is_known(arguments, capsys):
    assert cli.main(arguments.split()) == 2
    message = capsys.readouterr().err
    (url,) = (text for text in arguments.replace("=", " ").split() if "://" in text)
    assert "must be a local file or folder" in message and message.endswith(url + "\n")
    assert os.listdir() == []


def test_an_error_of_the_program_is_not_hidden(command):
    command(lambda options: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["train"])


def test_an_interrupt_ends_without_a_trace(command, capsys):
    def interrupt(options):
        raise KeyboardInterrupt

    command(interrupt)
    assert cli.main(["train"]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


def test_warnings_are_one_line(command, capsys):
    command(lambda options: warnings.warn("two classes are empty", stacklevel=1))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        cli.main(["train"])
    assert capsys.readouterr().err == "warning: two classes are empty\n"


def test_damaged_tags_of_an_image_without_a_name_are_no_news(command, capsys, tmp_path):
    """A text of 1000 bytes at a place behind the end of the file."""
    tag = struct.pack("<HHHII", 1, 0x010F, 2, 1000, 5000)
    exif = b"Exif\0\0II*\0" + struct.pack("<I", 8) + tag + bytes(4)
    path = tmp_path / "photo.jpg"
    Image.new("RGB", (4, 4)).save(path, exif=exif)
    with pytest.warns(UserWarning, match="Skipping tag"):
        load_image(path)
    command(lambda options: load_image(path) is None)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        cli.main(["train"])
    assert capsys.readouterr().err == ""


def test_no_help_loads_what_takes_long():
    # One process for all: each help text costs a fraction of a second.
    code = (
        "import sys\n"
        "from vfnet_tf.cli.__main__ import COMMANDS, main\n"
        "main(['--help'])\n"
        "for name in COMMANDS:\n"
        "    try:\n"
        "        main([name, '--help'])\n"
        "    except SystemExit as end:\n"
        "        print('status', end.code)\n"
        "main(['configs', 'r50'])\n"
        "main(['configs', 'vfnet_r50_fpn_1x_coco'])\n"
        "slow = {'tensorflow', 'keras', 'matplotlib', 'PIL', 'pycocotools', 'av'}\n"
        "print('loaded', sorted(slow & set(sys.modules)))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.endswith("loaded []\n")
    assert answer.stdout.count("status 0") == len(cli.COMMANDS)
    assert "usage: vfnet evaluate" in answer.stdout


def test_every_command_has_a_script_that_passes_its_status_on():
    # A Python file is named without dashes.
    scripts = {
        path.stem.replace("_", "-"): path for path in (ROOT / "scripts").glob("*.py")
    }
    assert set(scripts) == set(cli.COMMANDS)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    answer = subprocess.run(
        [sys.executable, "scripts/evaluate.py"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 2
    assert answer.stderr.startswith("error: Give one of --checkpoint, --model and")
    for name, path in scripts.items():
        assert f'run_command("{name}")' in path.read_text()


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_every_command_has_options_and_a_function_to_run(name):
    module = importlib.import_module(cli.COMMANDS[name][0])
    assert callable(module.run)
    assert hasattr(module, "OPTIONS")
