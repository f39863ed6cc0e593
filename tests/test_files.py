import errno
import os
import sys
import threading

import pytest

from vfnet_tf.files import cache_directory, filling_folder, only_process, reserve


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("is_there", [False, True])
def test_a_folder_appears_with_all_that_was_written(tmp_path, is_there):
    folder = tmp_path / "deep" / "set"
    if is_there:
        folder.mkdir(parents=True)
    with filling_folder(folder) as aside:
        (aside / "a.txt").write_text("a")
        assert not (folder / "a.txt").exists()
    assert names(tmp_path) == ["deep", "deep/set", "deep/set/a.txt"]
    assert folder.stat().st_mode & 0o777 == 0o755


def test_a_url_is_no_folder_for_the_cache(monkeypatch):
    monkeypatch.setenv("VFNET_TF_CACHE", "gs://bucket/cache")
    with pytest.raises(ValueError, match="VFNET_TF_CACHE must be a local .* gs://buck"):
        cache_directory()


def test_after_an_error_there_is_no_folder(tmp_path):
    with pytest.raises(KeyboardInterrupt), filling_folder(tmp_path / "set") as aside:
        (aside / "a.txt").write_text("a")
        raise KeyboardInterrupt
    assert names(tmp_path) == []


@pytest.mark.parametrize("is_same", [False, True])
def test_a_folder_that_another_process_filled_meanwhile_stays(tmp_path, is_same):
    folder = tmp_path / "set"

    def fill():
        with filling_folder(folder, lambda: is_same) as aside:
            (aside / "a.txt").write_text("mine")
            folder.mkdir()
            (folder / "a.txt").write_text("theirs")

    if is_same:
        fill()
    else:
        with pytest.raises(OSError, match="not empty"):
            fill()
    assert names(tmp_path) == ["set", "set/a.txt"]
    assert (folder / "a.txt").read_text() == "theirs"


def test_one_process_at_a_time_has_a_folder(tmp_path):
    waiting, has_begun, order = threading.Event(), threading.Event(), []

    def second():
        has_begun.wait()
        with only_process(tmp_path / "home", waiting.set) as is_alone:
            order.append(("second", is_alone))

    thread = threading.Thread(target=second)
    thread.start()
    with only_process(tmp_path / "home") as is_alone:
        has_begun.set()
        assert waiting.wait(timeout=10)
        order.append(("first", is_alone))
    thread.join()
    assert order == [("first", True), ("second", True)]


def test_without_locks_nobody_waits(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with only_process(tmp_path) as first, only_process(tmp_path) as second:
        assert (first, second) == (False, False)


@pytest.mark.parametrize("has_fallocate", [True, False])
def test_there_is_room_for_a_file_or_none_is_left(tmp_path, monkeypatch, has_fallocate):
    path = tmp_path / "a.h5"
    path.write_bytes(b"old")
    if has_fallocate and not hasattr(os, "posix_fallocate"):
        pytest.skip("this system cannot reserve room")
    if not has_fallocate:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    reserve(path, 1000)
    assert path.stat().st_size == (1000 if has_fallocate else 0)
    with pytest.raises(OSError, match=r"(No space left|File too large).*a\.h5"):
        reserve(path, 2**60)
    assert names(tmp_path) == []


def test_a_drive_that_cannot_reserve_room_is_written_to(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    reserve(tmp_path / "a.h5", 1000)
    assert names(tmp_path) == ["a.h5"]
