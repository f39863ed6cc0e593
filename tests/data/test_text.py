import unicodedata

import pytest

from vfnet_tf.data import text as texts
from vfnet_tf.data.text import (
    MAX_TEXT_BYTES,
    decode_text,
    has_mark,
    is_valid,
    plain_name,
    printable,
    read_json,
    read_json_file,
    read_lines,
    read_text,
    split_lines,
)

TEXT = '{"name": "k\u00e4fer \U0001f41e"}'


@pytest.mark.parametrize(
    ("encoding", "marked"),
    [
        ("utf-8", False),
        ("utf-8-sig", True),
        ("utf-16", True),  # with its mark, as the next
        ("utf-32", True),
        ("utf-16-le", False),
        ("utf-16-be", False),
    ],
)
def test_a_text_is_the_same_in_all_encodings(tmp_path, encoding, marked):
    data = TEXT.encode(encoding)
    assert decode_text(data) == TEXT and has_mark(data) == marked
    for mark, order in ((b"\xfe\xff", "utf-16-be"), (b"\xff\xfe", "utf-16-le")):
        assert decode_text(mark + TEXT.encode(order)) == TEXT
    file = tmp_path / "a.json"
    file.write_bytes(data)
    assert read_json(file) == {"name": "k\u00e4fer \U0001f41e"}
    assert read_text(file, 8) == TEXT[: len(decode_text(data[:8]))]
    assert decode_text(b"") == "" and decode_text(b"1") == "1"


def test_lines_end_by_any_end_of_a_line_and_by_nothing_else(tmp_path):
    text = "a\r\nb\rc\n\n d\x0b\x85\u2028e \n"
    assert split_lines(text) == ["a", "b", "c", "", " d\x0b\x85\u2028e "]
    assert split_lines("") == [] and split_lines("a") == ["a"]
    (tmp_path / "a.txt").write_bytes(text.encode("utf-8-sig"))
    assert read_lines(tmp_path / "a.txt") == ["a", "b", "c", "d\x0b\x85\u2028e"]


def test_bytes_that_are_no_utf_8_spoil_their_entry_only():
    good, bad = split_lines(decode_text(b"dog\nk\xe4fer\n"))
    assert is_valid(good) and not is_valid(bad)
    assert printable(good) == "dog" and printable(bad) == r"k\xe4fer"
    assert printable("\ud83d") == r"\xed\xa0\xbd"  # half a character of a json
    with pytest.raises(ValueError, match="is no valid UTF-16-LE"):
        decode_text(b"\xff\xfe0")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "must exist"),
        (b"{", "valid json"),
        (b"\xff\xfe0", "UTF-16"),
        (b"", "valid json"),
        (b'{"a": {"b": [1], "b": [2]}}', "the key 'b' comes twice with two values"),
    ],
)
def test_a_json_that_cannot_be_read_is_refused_with_the_reason(tmp_path, data, message):
    if data is not None:
        (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{"a": [1], "a": [1]}')
    assert read_json(tmp_path / "a.json") == {"a": [1]}


def test_a_plain_name_is_composed_and_has_no_blanks_around_it():
    name = "k\u00e4fer \u00fc"
    assert plain_name(f" {unicodedata.normalize('NFD', name)}\t") == name


def test_a_json_file_of_the_user_is_named(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("[1]")
    assert read_json_file(path) == [1]
    for text in ("[", '{"a": 1, "a": 2}'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"json file must be .*path=.*a\.json"):
            read_json_file(path)
    with pytest.raises(ValueError, match=r"json file must exist.*b\.json"):
        read_json_file(tmp_path / "b.json")


def test_a_file_that_is_too_large_is_refused_unread(tmp_path):
    path = tmp_path / "a.json"
    with open(path, "wb") as file:
        file.truncate(MAX_TEXT_BYTES + 1)  # sparse
    with pytest.raises(
        ValueError, match="has 4294967297 bytes, more than 4294967296: "
    ):
        read_text(path)
    assert set(read_text(path, 8)) == {"\0"}
    message = r"must be valid json \(has 4294967297 .*`segmentation`.*path=.*a\.json"
    with pytest.raises(ValueError, match=message):
        read_json_file(path)


def test_a_file_of_the_largest_size_is_read(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_text("[1, 2]")
    for size, is_read in ((6, True), (5, False)):
        monkeypatch.setattr(texts, "MAX_TEXT_BYTES", size)
        if is_read:
            assert read_json(path) == [1, 2]
        else:
            with pytest.raises(ValueError, match="has 6 bytes, more than 5"):
                read_json(path)
