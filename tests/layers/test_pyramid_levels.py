"""The levels of necks and heads, as arguments and in their inputs."""

import numpy as np
import pytest

from vfnet_tf.heads import DenseHead, RepPointsHead, VFNetHead
from vfnet_tf.necks import FPN, PAFPN

HEADS = pytest.mark.parametrize("head", [DenseHead, RepPointsHead, VFNetHead])
NECKS = pytest.mark.parametrize("neck", [FPN, PAFPN])
LEVELS = {"levels": ["P3", "P4"], "strides": [8, 16]}


def settings_of(head):
    own = {"distance_units": [64, 128]} if head is VFNetHead else {}
    return {"filters": 32, "num_convs": 1, **LEVELS, **own}


def maps(channels=8, names=("C3", "C4"), sizes=((6, 8), (3, 4))):
    return {
        name: np.zeros((1, *size, channels), "float32")
        for name, size in zip(names, sizes, strict=True)
    }


@pytest.mark.backend
@NECKS
def test_levels_may_be_lists_and_have_any_name(neck):
    layer = neck(32, ["C3", "C4"], ["low", "high", "top"])
    outputs = layer(maps())
    assert [tuple(x.shape) for x in outputs.values()] == [
        (1, 6, 8, 32),
        (1, 3, 4, 32),
        (1, 2, 2, 32),
    ]
    copy = neck.from_config(layer.get_config())
    assert copy.out_levels == ("low", "high", "top")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"in_levels": "C3"}, "`in_levels` must be names.*in_levels='C3'"),
        ({"out_levels": "P3"}, "`out_levels` must be names"),
        ({"in_levels": ()}, "`in_levels` must be names"),
        ({"in_levels": (3, 4, 5)}, "`in_levels` must be names"),
        ({"out_levels": ("P3", "P4", "P4", "P5")}, "`out_levels` must differ"),
        ({"in_levels": ("C3", "C3")}, "`in_levels` must differ"),
        ({"out_levels": ("P3", "P4")}, "not be fewer"),
        ({"filters": 0}, "filters=0"),
        ({"filters": 32.0}, "filters=32.0"),
        ({"norm": "layer_norm"}, "norm=layer_norm"),
    ],
)
@NECKS
def test_necks_refuse_arguments_by_name(neck, settings, message):
    with pytest.raises(ValueError, match=message):
        neck(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"levels": "P3"}, "`levels` must be names"),
        ({"levels": ["P3", "P3"]}, "`levels` must differ"),
        ({"levels": ["P3"]}, "of one length"),
        ({"strides": [8, 0]}, r"`strides` must be > 0.*\[8, 0\]"),
        ({"num_classes": 0}, "num_classes=0"),
        ({"num_classes": 2.5}, "num_classes=2.5"),
        ({"prior_probability": 0.0}, "prior_probability=0.0"),
        ({"prior_probability": 1.0}, "prior_probability=1.0"),
        ({"filters": 0}, "filters=0"),
        ({"num_convs": -1}, "num_convs=-1"),
    ],
)
@HEADS
def test_heads_refuse_arguments_by_name(head, settings, message):
    with pytest.raises(ValueError, match=message):
        head(**{**settings_of(head), **settings})


#: What is given in place of a dict of all levels.
GIVEN = [
    (lambda x: list(x.values()), "dict with the levels.*Received: list"),
    (lambda x: next(iter(x.values())), "dict with the levels.*Received: "),
    (lambda x: dict([*x.items()][:1]), r"dict with the levels.*Received: \['"),
    (lambda x: {**x, [*x][1]: np.zeros((3, 4, 8))}, r"one map \[B, H, W, C\]"),
]


@pytest.mark.backend
@NECKS
@pytest.mark.parametrize(("change", "message"), GIVEN)
def test_necks_name_missing_levels_before_and_after_they_are_built(
    neck, change, message
):
    built = neck(32, ("C3", "C4"), ("P3", "P4"))
    built(maps())
    with pytest.raises(ValueError, match=message):
        neck(32, ("C3", "C4"), ("P3", "P4"))(change(maps()))
    with pytest.raises(ValueError, match=f"{message}|incompatible with the layer"):
        built(change(maps()))


@pytest.mark.backend
@HEADS
@pytest.mark.parametrize(("change", "message"), GIVEN)
def test_heads_name_missing_levels(head, change, message):
    given = maps(names=("P3", "P4"))
    with pytest.raises(ValueError, match=message):
        head(3, **settings_of(head))(change(given))


@pytest.mark.backend
@HEADS
def test_heads_name_levels_of_different_channels(head):
    given = {**maps(8, names=("P3", "P4")), "P4": np.zeros((1, 3, 4, 16), "float32")}
    with pytest.raises(ValueError, match="levels of one number of channels.*16"):
        head(3, **settings_of(head))(given)


@pytest.mark.backend
@NECKS
@pytest.mark.parametrize("size", [(6, 8), (4, 4), (2, 4), (1, 1)])
def test_a_level_that_is_not_half_the_finer_one_is_named(neck, size):
    given = maps(sizes=((6, 8), size))
    with pytest.raises(ValueError, match=r"half the finer one.*\(1, 6, 8, 32\)"):
        neck(32, ("C3", "C4"), ("P3", "P4"))(given)
