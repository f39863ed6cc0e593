"""A detector is refused if its parts have different levels or strides."""

import numpy as np
import pytest

from tests import contracts
from tests.conftest import build_small, tiny_model
from vfnet_tf.assigners import ATSSAssigner, FCOSAssigner, FoveaAssigner, PointAssigner
from vfnet_tf.backbones import KerasBackbone, ResNet
from vfnet_tf.detectors import FCOS, FoveaBox, RepPoints, VFNet
from vfnet_tf.heads import DenseHead, RepPointsHead, VFNetHead
from vfnet_tf.necks import FPN, PAFPN

LEVELS = ("P2", "P3", "P4", "P5", "P6")
STRIDES = (4, 8, 16, 32, 64)


def _centered(levels=LEVELS):
    return DenseHead(1, 32, 0, centerness="box", levels=levels)


#: detector, its head, and the positives by stride of a box of 24 x 24 at (10, 10)
HAND = {
    # The nine points nearest to (22, 22) whose anchors of 32 pixels overlap most.
    "vfnet": (VFNet, lambda: VFNetHead(1, 32, 0, levels=LEVELS), {4: 9}),
    # Points 18, 22 and 26 lie within 1.5 strides of 22; the largest distance is 16,
    # below the 32 pixels that the finest level learns.
    "fcos": (FCOS, _centered, {4: 9}),
    # sqrt(area) is 24, in 1..32 and in 16..64. The shrunken box is 17.2 to 26.8: the
    # cells 4..6 of stride 4 and the cell 2 of stride 8.
    "foveabox": (FoveaBox, lambda: DenseHead(1, 32, 0, levels=LEVELS), {4: 9, 8: 1}),
    # 2 ** floor(log2(24 / 4)) = 4: one point of that level.
    "reppoints": (RepPoints, lambda: RepPointsHead(1, 32, 0, levels=LEVELS), {4: 1}),
}


def build_fine(kind, **settings):
    cls, head, _ = HAND[kind]
    neck = FPN(32, ("C2", "C3", "C4", "C5"), LEVELS)
    return cls(ResNet(depth=18), neck, head(), **settings)


@pytest.mark.parametrize("kind", HAND)
def test_positives_of_a_pyramid_from_p2_are_those_by_hand(kind):
    detector = build_fine(kind)
    assert detector.strides == STRIDES
    priors = detector.make_priors(detector.level_shapes(64, 96))
    targets = {
        "boxes": np.array([[[10.0, 10.0, 34.0, 34.0]]], "float32"),
        "labels": np.array([[0]], "int32"),
        "image_size": np.array([[64.0, 96.0]], "float32"),
    }
    assigner = getattr(detector, "initial_assigner", detector.assigner)
    found = assigner(priors["points"], priors["strides"], *targets.values())
    strides = np.array(priors["strides"])[np.array(found.is_positive)[0]]
    values, counts = np.unique(strides, return_counts=True)
    assert dict(zip(values, counts, strict=True)) == HAND[kind][2]


def test_defaults_by_stride_are_the_published_ones_for_the_usual_levels():
    assert FCOSAssigner().limits == (64, 128, 256, 512, np.inf)
    assert FoveaAssigner().scale_ranges == (
        (1, 64),
        (32, 128),
        (64, 256),
        (128, 512),
        (256, 2048),
    )
    assert VFNetHead(1).distance_units == (64, 128, 256, 512, 1024)
    for head in (VFNetHead, DenseHead, RepPointsHead):
        assert head(1).strides == (8, 16, 32, 64, 128)
        with pytest.raises(ValueError, match="`strides`.*'fine'"):
            head(1, levels=("fine", "coarse"))


#: what does not match -> (how it is built, what the message must have)
MISMATCHES = {
    "vfnet": (
        lambda: build_fine("vfnet", assigner=ATSSAssigner()),
        r"ATSSAssigner\(strides=\(4, 8, 16, 32, 64\)\).*\(8, 16, 32, 64, 128\)",
    ),
    "fcos": (lambda: build_fine("fcos", assigner=FCOSAssigner()), "FCOSAssigner"),
    "foveabox": (
        lambda: build_fine("foveabox", assigner=FoveaAssigner((4, 8))),
        "FoveaAssigner",
    ),
    "reppoints": (
        lambda: build_fine("reppoints", initial_assigner=PointAssigner()),
        "`initial_assigner`.*PointAssigner",
    ),
    "a level that the neck has not": (
        lambda: FCOS(ResNet(depth=18), FPN(8, out_levels=LEVELS[1:4]), _centered()),
        "head's levels must be among the neck's.*'P2': 4.*neck",
    ),
    "a name that is one level off": (
        lambda: FCOS(ResNet(depth=18), FPN(8, out_levels=LEVELS), _centered()),
        "'P2': 4.*of the head.*'P2': 8.*of the neck",
    ),
    "the same of a PAFPN": (
        lambda: FCOS(ResNet(depth=18), PAFPN(32, out_levels=LEVELS), _centered()),
        "'P2': 4.*of the head.*'P2': 8.*of the neck",
    ),
    "strides of the head": (
        lambda: FCOS(
            ResNet(depth=18),
            FPN(8),
            DenseHead(1, 32, 0, centerness="box", strides=STRIDES),
        ),
        "'P3': 4.*of the head",
    ),
    "layers of the backbone": (
        lambda: KerasBackbone(tiny_model(), ("c3", "c4", "c4_bn")),
        r"\[8, 16, 32\].*\[8, 16, 16\]",
    ),
}


@pytest.mark.parametrize("what", MISMATCHES)
def test_parts_of_other_levels_are_refused(what):
    build, message = MISMATCHES[what]
    with pytest.raises(ValueError, match=message):
        build()


def test_an_assigner_that_is_set_afterwards_is_checked_too(small_batch):
    detector = build_small("vfnet")
    outputs = detector(small_batch["images"])
    detector.assigner = ATSSAssigner(strides=(4, 8))
    with pytest.raises(ValueError, match=r"head's strides.*\(4, 8\)"):
        contracts.to_numpy(detector.compute_losses(outputs, small_batch))
