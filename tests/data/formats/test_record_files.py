import pytest

from tests.tf_examples import checksum, framed, write_records
from vfnet_tf.data.formats.record_files import find_records, find_sets, is_record_file


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("a.tfrecord", True),
        ("a.TFRecords", True),
        ("a.record", True),
        ("a.tfrec", True),
        ("a.tf_record", True),
        ("a-00000-of-00010", True),
        ("a.record-0-of-2", True),
        ("a-00000-of-00010.tfrecord", True),
        ("a.tfrecord.gz", True),
        ("tfrecord", False),
        ("a.record.json", False),
        ("a.json", False),
        ("recorded.jpg", False),
    ],
)
def test_files_of_records_are_known_by_their_names(name, is_one):
    assert is_record_file(name) == is_one


def test_shards_of_one_name_are_a_set(tmp_path):
    one = [framed(b"x")]
    files = {f"coco_val.record-0000{n}-of-00004": one for n in (3, 0, 9)}
    files |= {"b.tfrecord": one, ".hidden.tfrecord": one, "d/c.tfrecord": one}
    files |= {"weights-00000-of-00001": b"not records", "empty-00000-of-00001": b""}
    plain, shards = find_sets(str(write_records(tmp_path, files)))
    assert (plain.stem, plain.names, plain.missing) == ("b", ("b.tfrecord",), ())
    assert (shards.word, shards.total) == ("val", 4)
    assert [name[16:21] for name in shards.names] == ["00000", "00003", "00009"]
    assert [name[16:21] for name in shards.missing] == ["00001", "00002", "00009"]


def test_records_are_found_by_their_lengths(tmp_path):
    records = [framed(b""), framed(b"abc"), framed(b"x" * 300)]
    path = tmp_path / "a.tfrecord"
    path.write_bytes(b"".join(records))
    assert find_records(str(path)) == ([(0, 0), (16, 3), (35, 300)], "")
    path.write_bytes(b"")
    assert find_records(str(path)) == ([], "")
    # A length of an exabyte with the right checksum.
    length = b"\0" * 7 + b"\x10"
    path.write_bytes(records[1] + length + checksum(length) + b"x" * 99)
    found, problem = find_records(str(path))
    assert found == [(0, 3)] and "ends within it" in problem
