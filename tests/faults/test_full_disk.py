"""A full disk and a read-only folder are one line, and what was there can be read."""

import contextlib
import gc
import os
import resource
import subprocess

import keras
import pytest

from tests.cli.test_train import CONFIG_FILE
from tests.conftest import build_two_levels
from vfnet_tf.cli.__main__ import main
from vfnet_tf.config import load_config
from vfnet_tf.detectors import dense_detector
from vfnet_tf.training.callbacks import ResumableCheckpoint
from vfnet_tf.training.optimizers import SGD
from vfnet_tf.training.run_lock import only_this_process
from vfnet_tf.training.run_state import read_state
from vfnet_tf.weights_file import check_seal

MEGABYTE = 2**20


def mount(*arguments):
    """Mounts, or skips the test where only others may."""
    try:
        subprocess.run(["mount", *arguments], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a disk cannot be mounted here: {error}")


@pytest.fixture
def disk(tmp_path):
    """A folder on a disk of 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "size=3m", "vfnet_test", str(folder))
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@contextlib.contextmanager
def files_of_at_most(size):
    """Stands for a full disk where nothing can be mounted: larger files are refused."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def full_disk(folder, room):
    """Leaves so many bytes of room on the disk of a folder."""
    status = os.statvfs(folder)
    filler = folder / "filler"
    with open(filler, "wb") as file:
        file.write(bytes(status.f_bavail * status.f_frsize - room))
    try:
        yield
    finally:
        filler.unlink()


@contextlib.contextmanager
def read_only(folder):
    if os.geteuid():
        folder.chmod(0o500)
    else:  # who may write everywhere else
        mount("-o", "remount,ro", str(folder))
    try:
        yield
    finally:
        if os.geteuid():
            folder.chmod(0o700)
        else:
            mount("-o", "remount,rw", str(folder))


@pytest.fixture(scope="module")
def model():
    """States of 0.6 MB."""
    model = build_two_levels(2, star=False, refine=False)
    model.compile(optimizer=SGD(0.1))
    model.optimizer.build(model.trainable_variables)
    return model


def save(model, run_dir, epoch):
    checkpoint = ResumableCheckpoint(run_dir)
    checkpoint.set_model(model)
    checkpoint.on_epoch_end(epoch, {"loss": 1.0, "val_AP": 0.5})


def assert_refused(model, run_dir, trouble, capfd, said):
    """The second epoch is refused in one line; the first one stays; then it goes on."""
    save(model, run_dir, 0)
    before = {path.name: path.read_bytes() for path in run_dir.iterdir()}
    assert set(before) == {"last.weights.h5", "best.weights.h5"}
    capfd.readouterr()
    with trouble, pytest.raises(OSError, match=said) as error:
        save(model, run_dir, 1)
    text = str(error.value)
    del error
    gc.collect()  # the objects of h5py, which print when they are removed
    assert capfd.readouterr() == ("", "")
    assert len(text.splitlines()) == 1 and len(text) < 500
    assert "last.weights.h5, is whole" in text
    assert {path.name: path.read_bytes() for path in run_dir.iterdir()} == before
    for name in before:
        check_seal(run_dir / name)
        assert read_state(run_dir / name)["epoch"] == 1
    save(model, run_dir, 1)
    assert read_state(run_dir / "last.weights.h5")["epoch"] == 2


def test_a_state_that_is_too_large_for_the_disk(model, tmp_path, capfd):
    run_dir = tmp_path / "run"
    said = "File too large.*last.weights.h5"
    assert_refused(model, run_dir, files_of_at_most(300_000), capfd, said)


# Without room for the state, and for the best weights beside it.
@pytest.mark.parametrize(
    ("room", "name"), [(300_000, "last"), (1_050_000, "best"), (0, "last")]
)
def test_a_disk_of_3_mb_that_is_full(model, disk, capfd, room, name):
    run_dir = disk / "run"
    said = f"No space left on device.*unfinished-{name}.weights.h5.* MiB are free"
    assert_refused(model, run_dir, full_disk(disk, room), capfd, said)


def test_a_read_only_run_directory(model, request, tmp_path, capfd):
    run_dir = tmp_path if os.geteuid() else request.getfixturevalue("disk")
    run_dir = run_dir / "run"
    run_dir.mkdir()
    place = run_dir if os.geteuid() else run_dir.parent
    said = "(Read-only file system|Permission denied).*last.weights.h5"
    assert_refused(model, run_dir, read_only(place), capfd, said)
    with (
        read_only(place),
        pytest.raises(OSError, match="Read-only|Permission"),
        only_this_process(run_dir),
    ):
        pass
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="the trainer is TensorFlow's"
)
def test_a_training_on_a_disk_of_3_mb_is_one_line(tmp_path, capfd, request):
    from vfnet_tf.data.synthetic import make_synthetic_dataset

    (tmp_path / "tiny.py").write_text(CONFIG_FILE, encoding="utf-8")
    make_synthetic_dataset(tmp_path / "set", 8, 4, image_size=(96, 128))
    options = ["--config", tmp_path / "tiny.py", "--data", tmp_path / "set"]
    options += ["--weights", "none", "--epochs", "1"]
    try:
        place, trouble = request.getfixturevalue("disk"), contextlib.nullcontext()
    except pytest.skip.Exception:
        place, trouble = tmp_path, files_of_at_most(3 * MEGABYTE)
    run_dir = place / "run"
    with trouble:
        status = main(["train", *map(str, options), "--out", str(run_dir)])
    gc.collect()
    lines = capfd.readouterr().err.splitlines()
    assert status == 2
    (error,) = [line for line in lines if not line.startswith("warning: ")]
    assert error.startswith("error: The state after 2 steps could not be saved in ")
    assert "No earlier state has been saved" in error
    names = {path.name for path in run_dir.iterdir()}
    assert names >= {"config.json", "history.csv"}
    assert not [name for name in names if name.startswith(".")]
    load_config(run_dir)


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="a SavedModel is TensorFlow's"
)
@pytest.mark.parametrize("megabytes", [0, 1])
def test_an_export_on_a_full_disk_is_one_line(model, disk, monkeypatch, megabytes):
    import tensorflow as tf

    from vfnet_tf.export.saved_model import exporter

    # In place of the graph, whose tracing takes a minute: the disk is full while the
    # variables are written, or the file of the graph.
    module = tf.Module()
    module.variable = tf.Variable(tf.zeros(megabytes * 2**18 + 1))
    module.constant = tf.constant(0.0)
    monkeypatch.setattr(exporter, "_make_module", lambda *_: (module, {}))
    settings = {"image_size": (64, 96), "class_names": ("a", "b")}
    exporter.export_saved_model(model, disk / "first", **settings)
    with (
        full_disk(disk, 8192 if megabytes == 0 else 200_000),
        pytest.raises(OSError, match="No space left") as error,
    ):
        exporter.export_saved_model(model, disk / "second", **settings)
    assert len(str(error.value).splitlines()) == 1 and "second" in str(error.value)
    assert {path.name for path in disk.iterdir()} == {"first"}
    tf.saved_model.load(disk / "first")


def test_weights_that_are_not_to_be_overwritten_stay(model, tmp_path, monkeypatch):
    path = tmp_path / "a.weights.h5"
    model.save_weights(path)
    before = path.read_bytes()
    monkeypatch.setattr("builtins.input", lambda *question: "n")
    model.save_weights(path, overwrite=False)
    assert path.read_bytes() == before
    check_seal(path)


def test_the_room_that_is_asked_for_is_enough(model, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(dense_detector, "reserve", lambda *one: asked.append(one[1]))
    save(model, tmp_path, 0)
    size = (tmp_path / "last.weights.h5").stat().st_size
    assert len(asked) == 1 and size < asked[0] < 2 * size
