"""Every head: names and channels of outputs, and its initial values."""

import keras
import numpy as np
import pytest

from tests import contracts
from tests.heads.small_heads import LEVELS, features, small_head
from vfnet_tf.heads import DenseHead, RepPointsHead, VFNetHead

TWO_ANCHORS = {"centerness": "class", "level_scales": True, "anchors_per_cell": 2}
#: class, settings, channels of each output
KINDS = {
    "vfnet": (
        VFNetHead,
        {},
        {"class_logits": 3, "distances": 4, "refined_distances": 4},
    ),
    "vfnet without refinement": (
        VFNetHead,
        {"refine": False},
        {"class_logits": 3, "distances": 4},
    ),
    "fcos": (
        DenseHead,
        {"centerness": "box", "level_scales": True},
        {"class_logits": 3, "box_predictions": 4, "centerness_logits": 1},
    ),
    "retinanet": (
        DenseHead,
        {"norm": None, "anchors_per_cell": 9},
        {"class_logits": 27, "box_predictions": 36},
    ),
    "two anchors": (
        DenseHead,
        TWO_ANCHORS,
        {"class_logits": 6, "box_predictions": 8, "centerness_logits": 2},
    ),
    "reppoints": (
        RepPointsHead,
        {},
        {
            "class_logits": 3,
            "point_shifts": 18,
            "refined_point_shifts": 18,
            "box_shifts": 4,
            "refined_box_shifts": 4,
        },
    ),
}


@pytest.mark.backend
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_have_the_names_and_channels_that_are_promised(kind):
    cls, settings, channels = KINDS[kind]
    found = small_head(cls, **settings)(features())
    assert list(found) == list(channels)
    for name, size in channels.items():
        for level, value in features().items():
            assert tuple(found[name][level].shape) == (*value.shape[:-1], size)


@pytest.mark.backend
@pytest.mark.parametrize(
    ("cls", "settings", "nothing"),
    [
        (VFNetHead, {}, {"distances": (64, 128), "refined_distances": (64, 128)}),
        (
            DenseHead,
            TWO_ANCHORS,
            {"box_predictions": (0, 0), "centerness_logits": (0, 0)},
        ),
        (RepPointsHead, {}, {"point_shifts": (0, 0), "box_shifts": (0, 0)}),
    ],
)
def test_a_head_of_zeros_gives_the_prior_and_the_units(cls, settings, nothing):
    head = small_head(cls, 0.0, prior_probability=0.02, **settings)
    found = contracts.to_numpy(head(features()))
    for level in LEVELS:
        scores = 1 / (1 + np.exp(-found["class_logits"][level]))
        np.testing.assert_allclose(scores, 0.02, rtol=1e-5)
        for name, values in nothing.items():
            value = dict(zip(LEVELS, values, strict=True))[level]
            np.testing.assert_allclose(found[name][level], value, atol=1e-5)


@pytest.mark.parametrize(
    ("cls", "settings", "count"),
    [
        (DenseHead, {"centerness": "box"}, 7),
        (RepPointsHead, {}, 10),
        (VFNetHead, {"deformable_towers": True}, 10),
    ],
)
def test_no_two_kernels_of_a_head_start_alike(cls, settings, count):
    keras.utils.set_random_seed(3)
    head = cls(4, 32, 2, levels=LEVELS, **settings)
    head(features())
    kernels = [contracts.to_numpy(v) for v in head.variables if "kernel" in v.name]
    kernels = [kernel for kernel in kernels if np.any(kernel)]  # not those of offsets
    assert len(kernels) == count
    for index, kernel in enumerate(kernels):
        for other in kernels[:index]:
            assert kernel.shape != other.shape or not np.array_equal(kernel, other)
