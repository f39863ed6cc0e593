"""Every loss: official values and gradients, extremes, sums, config."""

import keras
import numpy as np
import pytest

from tests import contracts
from vfnet_tf import losses

LOG2 = np.log(2.0)


def one_hot_of(stored, key):
    return np.eye(9)[stored[f"{key}/target0"]][:, :8]  # index 8 is background


def quality_of(stored, key):
    return one_hot_of(stored, key) * stored[f"{key}/target1"][:, None]


def target_of(stored, key):
    return stored[f"{key}/target0"]


#: recorded family -> function, targets, its cases: settings and the loss's weight
FAMILIES = {
    "focal": (
        losses.focal_loss,
        one_hot_of,
        {
            "": ({}, 1),
            "_weight": ({}, 1),
            "_g15_a04": ({"alpha": 0.4, "gamma": 1.5}, 1),
            "_allbg": ({}, 1),
        },
    ),
    "qfl": (
        losses.quality_focal_loss,
        quality_of,
        {"": ({}, 1), "_weight": ({}, 1), "_q0_allbg": ({}, 1)},
    ),
    "varifocal": (
        losses.varifocal_loss,
        target_of,
        {
            "": ({}, 1),
            "_q0": ({}, 1),
            "_q1": ({}, 1),
            "_alpha05_gamma15_noiou_w2": (
                {"alpha": 0.5, "gamma": 1.5, "iou_weighted": False},
                2,
            ),
            "_weight_mean": ({}, 1),
        },
    ),
    "giou": (
        losses.giou_loss,
        target_of,
        {
            "weighted": ({}, 1.5),
            "mean": ({}, 2),
            "clean_weighted": ({}, 2),
            "avg_small": ({}, 2),
        },
    ),
}
RECORDED = [
    (family, f"{logits}{case}", *given)
    for family, (_, _, cases) in FAMILIES.items()
    for logits in (("",) if family == "giou" else ("normal", "extreme"))
    for case, given in cases.items()
]


@pytest.mark.backend
@pytest.mark.parametrize(
    ("family", "case", "settings", "loss_weight"),
    RECORDED,
    ids=[f"{family}/{case}" for family, case, *_ in RECORDED],
)
def test_values_and_gradients_are_the_official_ones(
    golden, family, case, settings, loss_weight
):
    stored, key = golden("losses"), f"{family}/{case}"
    function, targets_of, _ = FAMILIES[family]
    predictions, targets = stored[f"{key}/pred"], targets_of(stored, key)
    weight = stored.get(f"{key}/weight", np.float32(1)) * np.float32(loss_weight)
    if family == "focal" and weight.ndim:
        weight = weight[:, None]
    count = len(predictions) if family == "giou" else predictions.size
    divisor = stored.get(f"{key}/avg_factor", count)

    def loss(predictions):
        values = function(targets, predictions, **settings)
        if family == "qfl":
            values = keras.ops.sum(values, axis=-1)
        return values * keras.ops.convert_to_tensor(weight)

    found = contracts.evaluate(loss, predictions)
    of_values = {"rtol": 1e-5, "atol": 1e-7}
    of_gradients = 1e-5
    if family == "giou":
        of_values, of_gradients = {"rtol": 1e-4, "atol": 2e-6}, 1e-4
    np.testing.assert_allclose(found, stored[f"{key}/elementwise"], **of_values)
    np.testing.assert_allclose(found.sum() / divisor, stored[f"{key}/loss"], rtol=1e-5)
    (gradient,) = contracts.gradients(loss, [predictions])
    assert np.all(np.isfinite(gradient))
    # Rows 0-9 of two cases are degenerate boxes: their gradients sit on a kink of min,
    # max or a floor, where every framework has its own.
    smooth = slice(10 if case in ("weighted", "mean") else 0, None)
    contracts.assert_close_to_max(
        (gradient / divisor)[smooth], stored[f"{key}/grad"][smooth], of_gradients
    )


#: function, settings, (target, logit, value, gradient); 1e4 is 9984 in bfloat16
EXTREMES = [
    (
        losses.focal_loss,
        {},
        [(0, 1e4, 0.75e4, 0.75), (0, -1e4, 0, 0), (1, 1e4, 0, 0)]
        + [(1, -1e4, 0.25e4, -0.25)],
    ),
    (
        losses.varifocal_loss,
        {},
        [(0, 1e4, 0.75e4, 0.75), (0, -1e4, 0, 0), (0.7, 1e4, 2.1e3, 0.21)]
        + [(0.7, -1e4, 4.9e3, -0.49), (1, 1e4, 0, 0)],
    ),
    *(
        (
            losses.quality_focal_loss,
            {"beta": beta},
            [(0, 1e4, 1e4, 1), (0, -1e4, 0, 0), (1, 1e4, 0, 0), (1, -1e4, 1e4, -1)]
            # A power of nothing, whose gradient must be finite.
            + [(0.5, 0, 0, None)],
        )
        for beta in (0.5, 1.0, 2.0)
    ),
    *(
        (
            losses.smooth_l1_loss,
            {"beta": beta},
            # float16 would overflow where the distance is squared.
            [(1, 1e4, 1e4, 1), (1, -1e4, 1e4, -1)],
        )
        for beta in (0.0, 0.11)
    ),
]


@pytest.mark.backend
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(
    ("function", "settings", "rows"),
    EXTREMES,
    ids=[f"{function.__name__} {settings}" for function, settings, _ in EXTREMES],
)
def test_ten_thousand_has_finite_values_and_gradients(function, settings, rows, dtype):
    targets, predictions, values, slopes = zip(*rows, strict=True)
    targets, predictions = np.float32(targets), np.float32(predictions)

    def loss(predictions):
        pair = keras.ops.cast(targets, dtype), keras.ops.cast(predictions, dtype)
        return function(*pair, **settings)

    found = loss(keras.ops.convert_to_tensor(predictions))
    assert keras.backend.standardize_dtype(found.dtype) == "float32"
    np.testing.assert_allclose(contracts.to_numpy(found), values, rtol=1e-2, atol=1e-5)
    (gradient,) = contracts.gradients(loss, [predictions])
    assert np.all(np.isfinite(gradient))
    for slope, expected in zip(gradient, slopes, strict=True):
        assert expected is None or slope == pytest.approx(expected, abs=0.01)


#: class -> targets and predictions `[1, 2, C]`, and the losses of the two points
POINTS = {
    losses.FocalLoss: (
        [[1, 0], [0, 0]],
        [[0, 0], [0, 0]],
        [0.25 * LOG2, 0.25 * 1.5 * LOG2],
    ),
    losses.QualityFocalLoss: (
        [[0.8, 0], [0, 0]],
        [[0, 0], [0, 0]],
        [0.34 * LOG2, 0.5 * LOG2],
    ),
    losses.VarifocalLoss: (
        [[0.8, 0], [0, 0]],
        [[0, 0], [0, 0]],
        [(0.8 + 0.1875) * LOG2, 2 * 0.1875 * LOG2],
    ),
    losses.GIoULoss: (
        [[0, 0, 2, 2], [0, 0, 1, 1]],
        [[1, 0, 3, 2], [2, 0, 3, 1]],
        [2 / 3, 4 / 3],
    ),
    losses.SmoothL1Loss: (
        [[1, 1, 1, 1], [1, 1, 1, 1]],
        [[1.5, -1, 2, 1], [1, 1, 1, 2]],
        [2.125, 0.5],
    ),
}


@pytest.mark.backend
@pytest.mark.parametrize("cls", POINTS)
def test_the_class_sums_the_last_axis_and_reduces_as_told(cls):
    targets, predictions, points = (np.float32([x]) for x in POINTS[cls])

    def check(loss, predictions, expected, **arguments):
        found = contracts.to_numpy(loss(targets, predictions, **arguments))
        np.testing.assert_allclose(found, expected, rtol=1e-5)

    check(cls(), predictions, points.sum())
    for reduction, expected in (
        ("sum", points.sum()),
        ("none", points),
        ("mean", points.mean()),
        (None, points),
    ):
        check(cls(reduction=reduction), predictions, expected)
    # Divided by the two positives of a batch, through the weight.
    check(cls(), predictions, points.sum() / 2, sample_weight=np.float32(0.5))
    if "from_logits" in CONFIGS[cls]:
        check(cls(from_logits=False, reduction="none"), predictions + 0.5, points)


COMMON = {"reduction": "mean", "name": "other"}
CONFIGS = {
    losses.FocalLoss: {"alpha": 0.5, "gamma": 1.5, "from_logits": False},
    losses.GIoULoss: {"epsilon": 1e-3},
    losses.QualityFocalLoss: {"beta": 1.5, "from_logits": False},
    losses.SmoothL1Loss: {"beta": 0.11},
    losses.VarifocalLoss: {
        "alpha": 0.5,
        "gamma": 1.5,
        "iou_weighted": False,
        "from_logits": False,
    },
}


@pytest.mark.parametrize("cls", CONFIGS)
def test_its_config_keeps_every_argument(cls):
    contracts.check_config(cls, {**CONFIGS[cls], **COMMON})


@pytest.mark.parametrize(
    ("cls", "name", "value"),
    [
        (losses.FocalLoss, "alpha", 1.5),
        (losses.FocalLoss, "gamma", -1),
        (losses.VarifocalLoss, "alpha", -1),
        (losses.VarifocalLoss, "gamma", -0.5),
        (losses.QualityFocalLoss, "beta", -1),
        (losses.SmoothL1Loss, "beta", -0.1),
    ],
)
def test_wrong_arguments_are_refused_by_name(cls, name, value):
    with pytest.raises(ValueError, match=f"`{name}`.*{name}={value}"):
        cls(**{name: value})
