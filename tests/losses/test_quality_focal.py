import keras
import numpy as np
import pytest

from tests import contracts
from vfnet_tf.losses import QualityFocalLoss, quality_focal_loss


@pytest.mark.backend
def test_one_positive_and_one_negative_by_hand():
    # logit 0 gives p = 0.5: distances 0.3 and 0.5, each log is -ln 2.
    loss = quality_focal_loss(np.array([[0.8, 0.0]]), np.array([[0.0, 0.0]]))
    expected = np.log(2.0) * np.array([[0.09, 0.25]])
    np.testing.assert_allclose(contracts.to_numpy(loss), expected, rtol=1e-5)


@pytest.mark.backend
@pytest.mark.parametrize("logits", ["normal", "extreme"])
@pytest.mark.parametrize("case", ["", "_weight", "_q0_allbg"])
def test_values_and_gradients_are_the_official_ones(golden, logits, case):
    key = f"qfl/{logits}{case}"
    stored = golden("losses")
    one_hot = np.eye(9)[stored[f"{key}/target0"]][:, :8]  # index 8 is background
    quality = one_hot * stored[f"{key}/target1"][:, None]
    weight = stored.get(f"{key}/weight", np.ones(24, "float32"))
    divisor = stored[f"{key}/avg_factor"]

    def loss(pred):
        return keras.ops.sum(
            quality_focal_loss(quality, pred), axis=-1
        ) * keras.ops.convert_to_tensor(weight)

    elementwise = contracts.evaluate(loss, stored[f"{key}/pred"])
    np.testing.assert_allclose(
        elementwise, stored[f"{key}/elementwise"], rtol=1e-5, atol=1e-7
    )
    np.testing.assert_allclose(
        elementwise.sum() / divisor, stored[f"{key}/loss"], rtol=1e-5
    )
    (gradient,) = contracts.gradients(loss, [stored[f"{key}/pred"]])
    contracts.assert_close_to_max(gradient / divisor, stored[f"{key}/grad"], 1e-5)


@pytest.mark.backend
@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_logits_of_ten_thousand_have_finite_values_and_gradients(dtype, beta):
    targets = np.array([0.0, 0.0, 1.0, 1.0, 0.5], "float32")
    logits = np.array([1e4, -1e4, 1e4, -1e4, 0.0], "float32")

    def loss(logits):
        return quality_focal_loss(targets, keras.ops.cast(logits, dtype), beta)

    value = contracts.to_numpy(loss(keras.ops.convert_to_tensor(logits)))
    np.testing.assert_allclose(value, [1e4, 0, 0, 1e4, 0], rtol=1e-2, atol=1e-5)
    (gradient,) = contracts.gradients(loss, [logits])
    np.testing.assert_allclose(gradient[:4], [1, 0, 0, -1], atol=0.01)
    assert np.isfinite(gradient[4])


@pytest.mark.backend
def test_the_class_sums_the_classes_and_takes_probabilities():
    targets = np.array([[[0.8, 0.0], [0.0, 0.0]]], "float32")
    half = np.full((1, 2, 2), 0.5, "float32")
    points = np.log(2.0) * np.array([[0.34, 0.5]])
    loss = QualityFocalLoss(from_logits=False, reduction="none")
    found = contracts.to_numpy(loss(targets, half))
    np.testing.assert_allclose(found, points, rtol=1e-5)
    found = QualityFocalLoss()(targets, np.zeros((1, 2, 2), "float32"))
    np.testing.assert_allclose(contracts.to_numpy(found), points.sum(), rtol=1e-5)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="beta=-1"):
        QualityFocalLoss(beta=-1)


def test_its_config_is_complete():
    contracts.check_config(
        QualityFocalLoss,
        {"beta": 1.5, "from_logits": False, "reduction": "mean", "name": "other"},
    )
