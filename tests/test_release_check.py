import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def check():
    return runpy.run_path(str(ROOT / ".ci" / "release_check.py"))


def test_the_wheel_must_have_the_package_the_configs_and_the_demo_page(check):
    files = check["shipped_files"]()
    assert "vfnet_tf/cli/demo_page/index.html" in files
    assert "vfnet_tf/configs/vfnet_r50_fpn_1x_coco.py" in files
    assert {name.split("/")[0] for name in files} == {"vfnet_tf"}
    metadata = ["vfnet_tf-0.1.0.dist-info/METADATA", "vfnet_tf-0.1.0.dist-info/RECORD"]
    assert check["faults_of_contents"]([*files, *metadata], files) == []


@pytest.mark.parametrize("name", ["tests/tiny_run.py", "docs/conf.py", "vfnet_tf/a.c"])
def test_a_file_too_many_in_the_wheel_is_named(check, name):
    files = {"vfnet_tf/__init__.py"}
    faults = check["faults_of_contents"]([*files, name], files)
    assert faults == [f"must not be there: {name}"]


def test_a_file_that_the_wheel_lacks_is_named(check):
    faults = check["faults_of_contents"]([], {"vfnet_tf/cli/demo_page/page.css"})
    assert faults == ["is missing: vfnet_tf/cli/demo_page/page.css"]


def test_a_command_sees_neither_the_clone_nor_its_settings(
    check, monkeypatch, tmp_path
):
    for name in ("PYTHONPATH", "VIRTUAL_ENV", "KERAS_BACKEND"):
        monkeypatch.setenv(name, str(ROOT))
    code = "import os; print(*sorted(os.environ))"
    seen = check["run"](sys.executable, "-c", code, cwd=tmp_path, read=True).split()
    assert "PATH" in seen and "PYTHONNOUSERSITE" in seen
    assert not {"PYTHONPATH", "VIRTUAL_ENV", "KERAS_BACKEND"} & set(seen)


def test_a_command_that_fails_ends_the_check(check, tmp_path):
    with pytest.raises(SystemExit, match="error: status 3 of .*sys.exit"):
        check["run"](sys.executable, "-c", "import sys; sys.exit(3)", cwd=tmp_path)


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (["/work/vfnet_tf/__init__.py\n"], "must be the installed one"),
        (["{env}/lib/vfnet_tf/__init__.py\n", "vfnet_tf: 1\n"], "must say vfnet_tf: 2"),
        (
            ["{env}/lib/vfnet_tf/__init__.py\n", "vfnet_tf: 2\nbackend: not usable\n"],
            "must say devices",
        ),
    ],
)
def test_a_package_that_does_not_work_ends_the_check(
    check, monkeypatch, tmp_path, answers, message
):
    replies = iter(answers)
    monkeypatch.setitem(
        check["use"].__globals__,
        "run",
        lambda *command, **options: next(replies).format(env=tmp_path),
    )
    vfnet = tmp_path / "bin" / "vfnet"
    with pytest.raises(SystemExit, match=message):
        check["use"]("python", vfnet, tmp_path, version="2")
