import json

import numpy as np
import pytest

from vfnet_tf.data import synthetic
from vfnet_tf.data.formats.coco import find_coco_splits, read_coco
from vfnet_tf.data.synthetic import (
    CLASS_NAMES,
    default_synthetic_directory,
    draw_scene,
    make_synthetic_dataset,
)


def contents(directory):
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    directory = tmp_path_factory.mktemp("synthetic") / "set"
    return make_synthetic_dataset(directory, num_train=20, num_val=5)


def test_the_reader_finds_nothing_to_complain_about(made):
    splits = find_coco_splits(made)
    assert list(splits) == ["train", "val"]
    for (file, image_dir), count in zip(splits.values(), (20, 5), strict=True):
        dataset = read_coco(file, image_dir, strict=True)
        assert len(dataset) == count and dataset.class_names == CLASS_NAMES
        assert dataset.report.num_without_objects == 0 and not dataset.report.dropped
        assert set(dataset.sizes) == {(256, 320)}


def test_sizes_range_from_8_pixels_to_half_the_image():
    sides = []
    for index in range(60):
        _, objects = draw_scene(np.random.default_rng(index))
        assert 1 <= len(objects) <= 6
        for label, (x, y, width, height), area in objects:
            assert 0 <= label < len(CLASS_NAMES)
            assert min(x, y) >= 0 and x + width <= 320 and y + height <= 256
            assert 0 < area <= width * height
            sides += [width, height]
    assert min(sides) >= 8 and min(sides) < 16
    assert 96 < max(sides) <= 128
    assert {label for i in range(9) for label, *_ in scene_objects(i)} == {0, 1, 2, 3}


def scene_objects(index):
    return draw_scene(np.random.default_rng(index))[1]


def test_a_box_encloses_its_shape_tightly():
    """A lone disc is the one saturated thing in the image."""
    lone = (
        (image, objects[0])
        for image, objects in map(draw_scene, map(np.random.default_rng, range(99)))
        if len(objects) == 1 and objects[0][0] == 0
    )
    image, (_, (x, y, width, height), area) = next(lone)
    red, green, blue = image.astype(int).transpose(2, 0, 1)
    is_red = red - np.maximum(green, blue) > 60
    rows, columns = np.flatnonzero(is_red.any(1)), np.flatnonzero(is_red.any(0))
    np.testing.assert_allclose([columns[0], columns[-1] + 1], [x, x + width], atol=2)
    np.testing.assert_allclose([rows[0], rows[-1] + 1], [y, y + height], atol=2)
    np.testing.assert_allclose(is_red.sum(), area, rtol=0.1)


def test_no_object_is_covered_by_more_than_four_tenths():
    owner = np.full((64, 64), -1)
    owner[22:42, 22:42] = 0
    num_overlaps = 0
    for index in range(200):
        rng = np.random.default_rng(index)
        placed = synthetic._place(rng, "shapes", (64, 64), owner, [400])
        if placed is not None:
            _, where, _, _, mask = placed
            covered = np.count_nonzero(owner[where][mask] == 0)
            num_overlaps += covered > 0
            assert covered <= 0.4 * 400
    assert num_overlaps > 10


def test_the_same_arguments_give_the_same_bytes(made, tmp_path):
    again = make_synthetic_dataset(tmp_path / "again", num_train=20, num_val=5)
    assert contents(again) == contents(made)
    other = make_synthetic_dataset(tmp_path / "other", num_train=2, num_val=1, seed=1)
    files, first = contents(made), contents(other)["train/000001.jpg"]
    # Another seed gives other images, and so does another split.
    assert len({first, files["train/000001.jpg"], files["val/000001.jpg"]}) == 3


def test_the_default_folder_is_in_the_cache_and_made_once(own_cache, monkeypatch):
    arguments = {"num_train": 2, "num_val": 1, "image_size": (64, 96), "seed": 3}
    directory = make_synthetic_dataset(**arguments)
    assert directory == default_synthetic_directory(**arguments)
    assert own_cache in directory.parents and "v1-2-1-64x96-seed3" in str(directory)

    def fail(*unused):
        raise AssertionError("drawn twice")

    monkeypatch.setattr(synthetic, "draw_scene", fail)
    assert make_synthetic_dataset(**arguments) == directory


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*unused):
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic, "draw_scene", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make_synthetic_dataset(tmp_path / "set", num_train=2, num_val=1)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_other_content_is_refused_and_untouched(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="must be absent, empty.*other content"):
        make_synthetic_dataset(tmp_path, num_train=2, num_val=1)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_set_of_other_arguments_is_refused(made):
    with pytest.raises(ValueError, match="'num_train': 21.*Received.*'num_train': 20"):
        make_synthetic_dataset(made, num_train=21, num_val=5)


def test_look_alikes_have_each_shape_with_each_texture(tmp_path):
    arguments = {"num_train": 40, "num_val": 1, "image_size": (64, 96)}
    directory = make_synthetic_dataset(tmp_path, kind="look_alikes", **arguments)
    file, image_dir = find_coco_splits(directory)["train"]
    dataset = read_coco(file, image_dir, strict=True)
    assert dataset.class_names == synthetic.class_names("look_alikes")
    assert {"ringed disc", "dotted disc", "striped star"} < set(dataset.class_names)
    assert {label for record in dataset for label in record.labels} == set(range(16))
    assert json.loads((directory / "synthetic.json").read_text())["kind"]
    with pytest.raises(ValueError, match="must be absent, empty"):
        make_synthetic_dataset(directory, **arguments)


def test_the_colour_of_look_alikes_says_nothing():
    """Every disc of the first kind is red, of the second one in three."""

    def share_of_red(kind):
        is_red = []
        for index in range(200):
            rng = np.random.default_rng(index)
            placed = synthetic._place(rng, kind, (64, 64), np.full((64, 64), -1), [])
            if placed is not None and placed[0] == 0:
                is_red.append(placed[3].reshape(-1, 3).mean(0).argmax() == 0)
        return np.mean(is_red)

    assert share_of_red("shapes") == 1.0
    assert share_of_red("look_alikes") < 0.6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_train": 0}, "`num_train` must be >= "),
        ({"num_val": 0}, "`num_val` must be >= "),
        ({"image_size": (256, 63)}, "`image_size` must be >= "),
        ({"kind": "animals"}, "'look_alikes'.*Received: kind=animals"),
    ],
)
def test_arguments_out_of_range_are_refused(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_synthetic_dataset(tmp_path / "set", **arguments)


def test_the_manifest_says_how_the_set_was_made(made):
    manifest = json.loads((made / "synthetic.json").read_text())
    assert manifest == {
        "version": synthetic.VERSION,
        "num_train": 20,
        "num_val": 5,
        "image_size": [256, 320],
        "seed": 0,
    }
