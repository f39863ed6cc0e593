import json
import os
import pathlib
import subprocess
import sys

import pytest

from vfnet_tf import processor
from vfnet_tf.cli import __main__ as cli

ROOT = pathlib.Path(__file__).parents[1]

AVX2 = frozenset({"avx", "avx2", "fma"})
AVX512 = AVX2 | {"avx512f", "avx512_vnni"}
BOTH = {processor.ONEDNN: "1", processor.FROZEN: "1"}


@pytest.fixture
def fresh(monkeypatch):
    """The state of a process before the import of TensorFlow."""
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    monkeypatch.setattr(os, "environ", {})
    return lambda flags: monkeypatch.setattr(processor, "cpu_flags", lambda: flags)


def settings():
    return {k: os.environ[k] for k in BOTH if k in os.environ}


def test_flags_are_those_that_linux_names(tmp_path):
    path = tmp_path / "cpuinfo"
    path.write_text("processor\t: 0\nflags\t\t: sse avx2\n\nflags\t\t: sse\n")
    assert processor.cpu_flags(path) == {"sse", "avx2"}
    assert processor.cpu_flags(tmp_path / "none") == frozenset()


@pytest.mark.parametrize("machine", ["x86_64", "AMD64", "aarch64"])
def test_training_turns_onednn_on_before_tensorflow_is_there(
    monkeypatch, fresh, machine
):
    monkeypatch.setattr(processor.platform, "machine", lambda: machine)
    processor.speed_up_training()
    assert settings() == ({} if machine == "aarch64" else {processor.ONEDNN: "1"})
    os.environ[processor.ONEDNN] = "0"
    processor.speed_up_training()
    assert settings() == {processor.ONEDNN: "0"}
    del os.environ[processor.ONEDNN]
    monkeypatch.setitem(sys.modules, "tensorflow", object())
    processor.speed_up_training()
    assert settings() == {}  # too late for TensorFlow


@pytest.mark.parametrize(
    ("flags", "given", "left"),
    [
        (AVX2, {}, BOTH),
        (AVX2, {processor.ONEDNN: "0"}, {processor.ONEDNN: "0"}),
        (AVX2, {processor.ONEDNN: "1"}, {processor.ONEDNN: "1"}),
        (AVX512, {}, {}),
        (AVX2 | {"avx512f"}, {}, BOTH),
        (frozenset({"asimd"}), {}, {}),
        (frozenset(), {}, {}),
    ],
)
def test_inference_freezes_weights_where_that_pays(fresh, flags, given, left):
    fresh(flags)
    os.environ.update(given)
    assert processor.speed_up_inference() == (left == BOTH)
    assert settings() == left
    assert processor.onednn_is_on() == (
        left.get(processor.ONEDNN, str(int(flags == AVX512))) == "1"
    )


@pytest.mark.parametrize(
    ("given", "frozen"),
    [
        (BOTH, True),
        ({processor.FROZEN: "1", processor.ONEDNN: "0"}, False),
        ({processor.FROZEN: "0", processor.ONEDNN: "1"}, False),
        ({processor.FROZEN: "TRUE"}, False),  # TensorFlow leaves oneDNN off there
    ],
)
def test_weights_are_frozen_where_onednn_is_on(fresh, given, frozen):
    fresh(AVX2)
    os.environ.update(given)
    assert processor.weights_are_frozen() == frozen


@pytest.mark.parametrize(
    ("machine", "system", "is_on"),
    [
        ("x86_64", "linux", True),
        ("AMD64", "win32", True),
        ("arm64", "linux", False),
        ("x86_64", "darwin", False),
    ],
)
def test_onednn_is_on_x86_alone(monkeypatch, fresh, machine, system, is_on):
    fresh(AVX2)
    os.environ[processor.ONEDNN] = "1"
    monkeypatch.setattr(processor.platform, "machine", lambda: machine)
    monkeypatch.setattr(processor.sys, "platform", system)
    assert processor.onednn_is_on() == is_on


def test_inference_is_chosen_before_tensorflow_or_not_at_all(monkeypatch, fresh):
    monkeypatch.setitem(sys.modules, "tensorflow", object())
    with pytest.raises(RuntimeError, match="before the first import of TensorFlow"):
        processor.speed_up_inference()


def test_onednn_is_expected_where_tensorflow_has_it():
    util = pytest.importorskip("tensorflow.python.util._pywrap_util_port")
    assert processor.onednn_is_on() == util.IsMklEnabled()


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_a_command_chooses_before_the_backend_is_there(command):
    # The backend reads the environment when it is imported; only a process can tell.
    code = (
        "import sys\n"
        "from vfnet_tf import processor\n"
        "def stop(name):\n"
        "    late = set(sys.modules) & {'keras', 'tensorflow', 'jax', 'torch'}\n"
        "    print(name, sorted(late))\n"
        "    raise SystemExit\n"
        "processor.speed_up_training = lambda: stop('training')\n"
        "processor.speed_up_inference = lambda: stop('inference')\n"
        "from vfnet_tf.cli import __main__ as cli\n"
        "cli._parse = lambda options, arguments: stop('neither')\n"
        f"if {command!r} in cli.TRAINING | cli.DETECTING:\n"
        "    cli._parse = lambda options, arguments: None\n"
        "    cli._refuse_urls = lambda options, arguments: None\n"
        f"cli.main([{command!r}])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    wanted = "neither"
    if command in cli.TRAINING:
        wanted = "training"
    elif command in cli.DETECTING:
        wanted = "inference"
    assert answer.stdout == f"{wanted} []\n", answer.stderr


def test_training_is_refused_where_weights_are_frozen(fresh, capsys):
    os.environ.update(BOTH)
    assert cli.run_command("train", ["--data", "nowhere"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: Training gives wrong results")
    assert f"without {processor.FROZEN}=1" in said and said.count("\n") == 1


#: Detections before and after weights are assigned, and what is refused.
DETECT_TWICE = """
import json, sys
import numpy as np
from tests.conftest import build_small
from vfnet_tf import processor

def shift(detector):
    for variable in detector.trainable_variables:
        noise = np.random.default_rng(3).normal(0, 0.1, variable.shape)
        variable.assign(variable + noise)

def reverse(detector):
    predictor = detector.head.class_predictor.conv.kernel
    predictor.assign(np.asarray(predictor)[..., ::-1])

answer = {"frozen": processor.weights_are_frozen(), "scores": []}
images = np.random.default_rng(0).normal(size=(3, 64, 96, 3)).astype("float32")
detector = build_small("vfnet", score_threshold=0.0)
for change in (None, shift, reverse):
    if change is not None:
        change(detector)
    for image in images:
        found = detector.detect(image[None])
        answer["scores"].append(np.ravel(found["scores"]).tolist())
    found = detector.predict(images, verbose=0)
    answer["scores"].append(np.ravel(found["scores"]).tolist())
refused = {
    "call": lambda: detector(images),
    "fit": lambda: (detector.compile("sgd"), detector.make_train_function()),
}
for name, call in refused.items():
    try:
        call()
    except ValueError as error:
        answer[name] = str(error)
print(json.dumps(answer))
"""


def _detect_twice(**environment):
    names = (processor.ONEDNN, processor.FROZEN)
    others = {name: v for name, v in os.environ.items() if name not in names}
    answer = subprocess.run(
        [sys.executable, "-c", DETECT_TWICE],
        env={**others, "KERAS_BACKEND": "tensorflow", **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout.splitlines()[-1])


def test_detections_follow_weights_that_are_assigned_where_they_are_frozen():
    frozen, plain = _detect_twice(**BOTH), _detect_twice(**{processor.ONEDNN: "1"})
    assert frozen["frozen"] and not plain["frozen"]
    for found, expected in zip(frozen["scores"], plain["scores"], strict=True):
        assert found == pytest.approx(expected, abs=1e-5)
    # Each change is one that shows.
    first, second, third = frozen["scores"][::4]
    assert first != pytest.approx(second, abs=1e-3)
    assert second != pytest.approx(third, abs=1e-3)
    assert "call" not in plain and "fit" not in plain
    assert "A detector that is called outside" in frozen["call"]
    assert frozen["fit"].startswith("Training gives wrong results")
