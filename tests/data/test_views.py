import numpy as np
import pytest
import tensorflow as tf

from tests import tiny_run
from vfnet_tf.data.formats.coco import read_coco
from vfnet_tf.data.normalization import CAFFE_BGR, TORCHVISION
from vfnet_tf.data.pipeline import build_pipeline
from vfnet_tf.data.views import OFFICIAL_SIZES, build_views, make_views


def as_numpy(views):
    return [{name: view[name].numpy() for name in view} for view in views]


def test_each_size_is_seen_plain_and_mirrored():
    image = tiny_run.picture(1, 50, 80)
    views = as_numpy(make_views(tf.constant(image), [(50, 80), (25, 40)]))
    assert [bool(view["flipped"]) for view in views] == [False, True] * 2
    plain, mirrored, half, half_mirrored = views
    # 80 wide, so 16 columns of padding on the right, whichever way the image looks.
    assert plain["images"].shape == mirrored["images"].shape == (64, 96, 3)
    np.testing.assert_allclose(plain["images"][:50, :80], TORCHVISION(image), atol=1e-6)
    np.testing.assert_array_equal(
        mirrored["images"][:50, :80], plain["images"][:50, 79::-1]
    )
    for view in (plain, mirrored):
        assert not view["images"][50:].any() and not view["images"][:, 80:].any()
        np.testing.assert_array_equal(view["image_size"], [50, 80])
        np.testing.assert_array_equal(view["scale"], [1, 1])
    assert half["images"].shape == half_mirrored["images"].shape == (32, 64, 3)
    np.testing.assert_array_equal(half["image_size"], [25, 40])
    np.testing.assert_array_equal(half["scale"], [0.5, 0.5])


def test_images_may_be_stretched_and_normalised_otherwise():
    image = tiny_run.picture(2, 50, 80)
    view, _ = as_numpy(
        make_views(
            tf.constant(image), [(100, 40)], normalization=CAFFE_BGR, keep_ratio=False
        )
    )
    assert view["images"].shape == (128, 64, 3)
    np.testing.assert_array_equal(view["scale"], [2, 0.5])
    resized = tf.round(tf.image.resize(image, (100, 40))).numpy()
    np.testing.assert_allclose(view["images"][:100, :40], CAFFE_BGR(resized), atol=1e-4)


def test_views_of_a_dataset_are_the_pipelines_images_in_its_order(tmp_path):
    dataset = read_coco(
        tiny_run.write_coco(tmp_path) / "annotations" / "instances_val.json",
        tmp_path / "val",
        training=False,
    )
    sizes = [(96, 128), (128, 160)]
    found = list(build_views(dataset, sizes).as_numpy_iterator())
    ids = [record.image_id for record in dataset]
    assert [int(image_id) for image_id, _ in found] == ids
    for place, size in enumerate(sizes):
        batches = build_pipeline(
            dataset,
            batch_size=1,
            image_size=size,
            max_canvas_shapes=len(dataset),
            training=False,
        )
        for batch in batches.as_numpy_iterator():
            plain = found[ids.index(batch["image_id"][0])][1][2 * place]
            for name in ("images", "image_size", "scale"):
                np.testing.assert_array_equal(plain[name], batch[name][0])


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([], r"at least one. Received: \[\]"),
        ([(64, 96), (160, 128)], r"image_size=\(160, 128\)"),
        ([(64.5, 96)], r"image_size=\(64.5, 96\)"),
    ],
)
def test_sizes_that_make_no_sense_are_refused_at_once(sizes, message):
    with pytest.raises(ValueError, match=message):
        build_views([], sizes)
    with pytest.raises(ValueError, match=message):
        make_views(tf.zeros((8, 8, 3), "uint8"), sizes)


def test_the_official_sizes_are_those_of_the_official_config():
    long_first = [(1200, 800), (1300, 900), (1500, 1000), (1600, 1200)]
    assert [(long, short) for short, long in OFFICIAL_SIZES] == long_first
