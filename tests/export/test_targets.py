import os

import pytest

from vfnet_tf.export.targets import (
    ABANDONED,
    check_file,
    check_place,
    replacing_folder,
    unfinished,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def fill(directory, text="new"):
    with replacing_folder(directory) as aside:
        aside.mkdir()
        (aside / "a.txt").write_text(text)


def test_a_folder_takes_the_place_of_the_old_one(tmp_path):
    fill(tmp_path / "deep" / "model", "old")
    fill(tmp_path / "deep" / "model")
    assert names(tmp_path / "deep") == ["model"]
    assert (tmp_path / "deep" / "model" / "a.txt").read_text() == "new"
    with (
        pytest.raises(KeyboardInterrupt),
        replacing_folder(tmp_path / "model") as aside,
    ):
        aside.mkdir()
        raise KeyboardInterrupt
    assert names(tmp_path) == ["deep"]


def test_a_link_stays_and_its_target_is_replaced(tmp_path):
    fill(tmp_path / "data" / "v1", "old")
    link = tmp_path / "model"
    link.symlink_to(tmp_path / "data" / "v1")
    fill(link)
    assert link.is_symlink() and (link / "a.txt").read_text() == "new"
    assert names(tmp_path) == ["data", "model"] and names(tmp_path / "data") == ["v1"]


def test_what_kills_have_left_is_swept_and_what_is_being_written_stays(tmp_path):
    kept = [".model.abcdef01.tmp", ".other.abcdef02.tmp", ".model.notes", "model.old"]
    swept = [".model.abcdef03.tmp", ".model.abcdef04.old"]
    for name in (*kept, *swept):
        (tmp_path / name).mkdir()
        (tmp_path / name / "part").write_text("half")
    (tmp_path / ".model.abcdef05.old").symlink_to(tmp_path / "elsewhere")
    for name in (*kept[1:], *swept):
        for path in (tmp_path / name / "part", tmp_path / name):
            os.utime(path, (0, 0))
    os.utime(tmp_path / ".model.abcdef05.old", (0, 0), follow_symlinks=False)
    # A young file in an old folder: somebody writes there.
    os.utime(tmp_path / kept[0], (0, 0))
    unfinished(tmp_path, "model")
    assert names(tmp_path) == sorted(kept)
    assert ABANDONED >= 600


def test_a_place_that_cannot_be_written_is_refused_beforehand(tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    (tmp_path / "file").write_text("")
    for path, said in (
        ("link", r"link to .*gone, which does not exist"),
        ("link/below/model", r"link must be a folder"),
        ("file/model", r"file must be a folder"),
    ):
        with pytest.raises(ValueError, match=said):
            check_place(tmp_path / path)
    check_place(tmp_path / "new" / "model")
    monkeypatch.setattr(
        os, "access", lambda path, mode: False
    )  # root may write anywhere
    with pytest.raises(ValueError, match="cannot be written to"):
        check_place(tmp_path / "new" / "model")


def test_a_file_is_checked(tmp_path):
    path = tmp_path / "model.onnx"
    assert check_file(str(path), ".onnx") == path
    path.write_text("")
    with pytest.raises(ValueError, match="`overwrite` must be True"):
        check_file(path, ".onnx")
    check_file(path, ".onnx", overwrite=True)
    for wrong in ("model.tflite", "model"):
        with pytest.raises(ValueError, match=r"must be a file \*\.onnx"):
            check_file(tmp_path / wrong, ".onnx")
