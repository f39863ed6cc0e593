import pytest
import tensorflow as tf

from tests.tf_examples import framed, picture, record, write_records
from vfnet_tf.data.images import decode
from vfnet_tf.data.images.places import (
    RecordPlace,
    file_of,
    find_place,
    image_stamps,
    open_image,
    record_path,
)


@pytest.mark.parametrize(
    "file", ["a.tfrecord", "/d/x y/ü\n-00000-of-00002", "gs://b/t"]
)
@pytest.mark.parametrize("name", ["a.jpg", "", "record-1@2+3+4", "a b\n'ü'.png"])
def test_paths_in_records_say_where_the_image_is(file, name):
    place = RecordPlace(file, 2**40, 93, 5120, name)
    path = record_path(3, place)
    assert find_place(path) == place and file_of(path) == file


@pytest.mark.parametrize("path", ["a.jpg", "/d/record-1@2+3/a.jpg", "d/record-1@2+3+4"])
def test_other_paths_are_files_of_their_own(path):
    assert find_place(path) is None and file_of(path) == path


def test_images_in_records_are_opened_in_python_and_in_graphs(tmp_path):
    records = [framed(b"none"), record(1)]
    root = write_records(tmp_path, {"t.tfrecord": records})
    skip = records[1].index(picture(seed=1)) - 12
    place = RecordPlace(
        str(root / "t.tfrecord"), len(records[0]), skip, len(picture(seed=1)), "a.jpg"
    )
    path = record_path(2, place)
    with open_image(path) as file:
        assert file.read() == picture(seed=1)
    (root / "a.jpg").write_bytes(picture(seed=1))
    plain = decode.load_image(str(root / "a.jpg"))
    tf.debugging.assert_equal(decode.load_image(path), plain)
    graph = tf.function(lambda path: decode.load_image(path, in_record=True))
    tf.debugging.assert_equal(graph(tf.constant(path)), plain)
    # With `enable_op_determinism` such operations would run one image at a time.
    operations = graph.get_concrete_function(tf.constant(path)).graph.get_operations()
    assert not [one.name for one in operations if one.op_def.is_stateful]
    status = (root / "t.tfrecord").stat()
    stamps = image_stamps([path, str(root / "nothing"), "zero\0byte"])
    assert stamps == {path: [status.st_size, status.st_mtime_ns]}
    data = (root / "t.tfrecord").read_bytes()
    (root / "t.tfrecord").write_bytes(data[:-1000])
    with pytest.raises(OSError, match="t.tfrecord ends before the image of a.jpg"):
        open_image(path)
