import os
import pathlib
import unicodedata

import pytest

from vfnet_tf.data.folders import (
    best_folder,
    find_file,
    is_hidden,
    list_folder,
    list_folders,
    list_tree,
    regular_file_error,
)


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.fixture
def odd(tmp_path):
    """A folder with everything in it that is no plain file."""
    folder = tmp_path / "data"
    touch(folder / "a.jpg", folder / "sub/b.jpg", tmp_path / "outside/c.jpg")
    touch(folder / "._a.jpg", folder / "Thumbs.db", folder / "__MACOSX/._b.jpg")
    os.mkfifo(folder / "pipe.jpg")
    for name, target in {
        "good.jpg": "a.jpg",
        "dead.jpg": "nowhere.jpg",
        "circle.jpg": "circle.jpg",
        "self": ".",
        "above": "..",
        "again": "sub",
        "linked": "../outside",
    }.items():
        (folder / name).symlink_to(target)
    return folder


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("a.jpg", ""),
        ("good.jpg", ""),
        ("nowhere.jpg", "does not exist"),
        ("dead.jpg", "does not exist, it is a link to nothing"),
        ("pipe.jpg", "is no regular file, but a pipe"),
        ("sub", "is no regular file, but a folder"),
        ("circle.jpg", "cannot be opened: Too many levels of symbolic links"),
        ("zero\0.jpg", "cannot be opened: embedded null byte"),
        ("/dev/null", "is no regular file, but a device"),
    ],
)
def test_what_is_no_file_is_known_before_it_is_opened(odd, name, error):
    assert regular_file_error(odd / name) == error


def test_a_tree_is_read_once_however_its_links_turn(odd):
    passed_over = []
    paths = [os.path.relpath(path, odd) for path in list_tree(odd, passed_over)]
    expected = "a.jpg circle.jpg dead.jpg good.jpg linked/c.jpg pipe.jpg sub/b.jpg"
    assert " ".join(paths) == expected
    reasons = {os.path.relpath(path, odd): reason for path, reason in passed_over}
    hidden = "is hidden or of the system"
    again = "is a link to a folder that is read already"
    assert reasons == {
        **dict.fromkeys(("._a.jpg", "Thumbs.db", "__MACOSX"), hidden),
        "circle.jpg": "cannot be opened: Too many levels of symbolic links",
        "dead.jpg": "does not exist, it is a link to nothing",
        "pipe.jpg": "is no regular file, but a pipe",
        **dict.fromkeys(("self", "above", "again"), again),
    }
    assert "sub/b.jpg" not in "".join(list_tree(odd, is_deep=False))
    assert list_tree(odd / "nowhere", passed_over) == []
    assert passed_over[-1][1] == "cannot be read: No such file or directory"
    with pytest.raises(OSError, match="nowhere"):  # or its images would be lost
        list_tree(odd / "nowhere")


def test_a_folder_gives_regular_files_by_their_endings_in_any_case(odd):
    touch(odd / "B.JPG")
    names = [path.name for path in list_folder(odd, {".jpg"})]
    assert names == ["B.JPG", "a.jpg", "good.jpg"]
    assert list(list_folders(odd)) == ["above", "again", "linked", "self", "sub"]
    assert list_folders(odd / "nowhere") == {} == list_folders(odd / "a.jpg")


def test_hidden_names():
    for name in (".a.jpg", "._a.jpg", ".DS_Store", "__MACOSX", "THUMBS.DB"):
        assert is_hidden(name)
    for name in ("a.jpg", "thumbs", "MACOSX", "_a.jpg"):
        assert not is_hidden(name)


@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
@pytest.mark.parametrize("named", ["NFC", "NFD"])
def test_a_file_is_found_however_its_name_is_composed(tmp_path, on_disk, named):
    name = "gr\u00fcn/M\u00fcller.jpg"
    file = tmp_path / unicodedata.normalize(on_disk, name)
    file.parent.mkdir()
    file.write_text("")
    asked = unicodedata.normalize(named, name)
    assert find_file(tmp_path, asked) == str(file)
    assert find_file(os.sep, str(tmp_path / asked)) == str(file)
    # Each part of a path may be composed otherwise.
    mixed = os.path.join(file.parent.name, os.path.basename(asked))
    assert find_file(tmp_path, mixed) == str(file)
    assert find_file(tmp_path, "\u00fc.jpg") == str(tmp_path / "\u00fc.jpg")


def test_the_folder_with_most_of_the_files_is_found_though_most_are_missing(tmp_path):
    names = [f"{number}.jpg" for number in range(1000)]
    first, second = tmp_path / "first", tmp_path / "second"
    touch(first / names[500], *(second / name for name in names[900:910]))
    assert best_folder([first, second], names) == second
    assert best_folder([first, second], names[:900]) == first
    touch(first / names[3])  # not among those that are looked at first
    assert best_folder([second, first], names[:450]) == first
    assert best_folder([pathlib.Path("nowhere"), first], names[10:400]) is None
    assert best_folder([first], []) is None
