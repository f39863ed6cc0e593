import keras
import numpy as np
import pytest

from tests import contracts
from vfnet_tf.losses import VarifocalLoss, varifocal_loss
from vfnet_tf.losses.varifocal import logits_from_probabilities

CASES = {
    "": {},
    "_q0": {},
    "_q1": {},
    "_alpha05_gamma15_noiou_w2": {"alpha": 0.5, "gamma": 1.5, "iou_weighted": False},
    "_weight_mean": {},
}


@pytest.mark.backend
def test_one_positive_and_one_negative_by_hand():
    # logit 0 gives p = 0.5, so each log is -ln 2.
    loss = varifocal_loss(np.array([[0.8, 0.0]]), np.array([[0.0, 0.0]]), 0.75, 2.0)
    expected = np.log(2.0) * np.array([[0.8, 0.75 * 0.5**2]])
    np.testing.assert_allclose(contracts.to_numpy(loss), expected, rtol=1e-6)


@pytest.mark.backend
def test_without_the_weight_a_positive_is_plain_cross_entropy():
    loss = varifocal_loss(np.array([0.3]), np.array([1.0]), iou_weighted=False)
    p = 1 / (1 + np.exp(-1.0))
    expected = [-(0.3 * np.log(p) + 0.7 * np.log(1 - p))]
    np.testing.assert_allclose(contracts.to_numpy(loss), expected, rtol=1e-6)


@pytest.mark.backend
@pytest.mark.parametrize("logits", ["normal", "extreme"])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_the_official_ones(golden, logits, case):
    key = f"varifocal/{logits}{case}"
    stored = golden("losses")
    weight = stored.get(f"{key}/weight", np.float32(1)) * np.float32(
        2.0 if case.endswith("_w2") else 1
    )
    divisor = stored.get(f"{key}/avg_factor", stored[f"{key}/pred"].size)
    target = stored[f"{key}/target0"]

    def loss(pred):
        return varifocal_loss(
            target, pred, **CASES[case]
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
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_logits_of_ten_thousand_have_finite_values_and_gradients(dtype):
    targets = np.array([0.0, 0.0, 0.7, 0.7, 1.0], "float32")
    logits = np.array([1e4, -1e4, 1e4, -1e4, 1e4], "float32")

    def loss(logits):
        logits = keras.ops.cast(logits, dtype)
        return varifocal_loss(keras.ops.cast(targets, dtype), logits)

    value = loss(keras.ops.convert_to_tensor(logits))
    assert keras.backend.standardize_dtype(value.dtype) == "float32"
    # 1e4 is 9984 in bfloat16, and 0.7 is off by up to 2e-3.
    expected = [0.75e4, 0.0, 0.7 * 0.3e4, 0.7 * 0.7e4, 0.0]
    np.testing.assert_allclose(contracts.to_numpy(value), expected, rtol=1e-2)
    (gradient,) = contracts.gradients(loss, [logits])
    np.testing.assert_allclose(gradient, [0.75, 0, 0.21, -0.49, 0], atol=0.01)


@pytest.mark.backend
def test_the_class_sums_the_classes_and_reduces_as_told():
    targets = np.array([[[0.8, 0.0], [0.0, 0.0]]], "float32")
    logits = np.zeros((1, 2, 2), "float32")
    positive, negative = 0.8 * np.log(2), 0.1875 * np.log(2)
    points = np.array([[positive + negative, 2 * negative]])
    for reduction, expected in (
        ("sum", points.sum()),
        ("none", points),
        ("mean", points.mean()),
        (None, points),
    ):
        loss = VarifocalLoss(reduction=reduction)(targets, logits)
        np.testing.assert_allclose(contracts.to_numpy(loss), expected, rtol=1e-6)
    # Divided by the two positives of a batch, through the weight.
    halved = VarifocalLoss()(targets, logits, sample_weight=np.float32(0.5))
    np.testing.assert_allclose(contracts.to_numpy(halved), points.sum() / 2, rtol=1e-6)


@pytest.mark.backend
def test_probabilities_give_what_their_logits_give():
    targets = np.array([[0.8, 0.0, 0.3]], "float32")
    logits = np.array([[1.5, -3.0, 0.2]], "float32")
    probabilities = 1 / (1 + np.exp(-logits))
    np.testing.assert_allclose(
        contracts.to_numpy(VarifocalLoss(from_logits=False)(targets, probabilities)),
        contracts.to_numpy(VarifocalLoss()(targets, logits)),
        rtol=1e-5,
    )
    ends = contracts.to_numpy(logits_from_probabilities(np.array([0.0, 0.5, 1.0])))
    np.testing.assert_allclose(ends, [-16.118, 0.0, 15.942], atol=0.2)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="alpha=-1"):
        VarifocalLoss(alpha=-1)
    with pytest.raises(ValueError, match="gamma=-0.5"):
        VarifocalLoss(gamma=-0.5)


def test_its_config_is_complete():
    contracts.check_config(
        VarifocalLoss,
        {
            "alpha": 0.5,
            "gamma": 1.5,
            "iou_weighted": False,
            "from_logits": False,
            "reduction": "mean",
            "name": "other",
        },
    )


@pytest.mark.backend
def test_a_plain_keras_model_learns_with_it():
    # Two classes told apart by the sign of one feature, soft targets of 0.9.
    keras.utils.set_random_seed(0)
    features = np.linspace(-1, 1, 32, dtype="float32")[:, None]
    targets = 0.9 * np.concatenate([features > 0, features <= 0], -1).astype("float32")
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2)])
    model.compile(keras.optimizers.SGD(0.05), loss=VarifocalLoss())
    history = model.fit(features, targets, epochs=20, batch_size=16, verbose=0)
    losses = history.history["loss"]
    assert losses[-1] < 0.7 * losses[0]
    scores = 1 / (1 + np.exp(-model.predict(features, verbose=0)))
    assert np.mean(np.argmax(scores, -1) == np.argmax(targets, -1)) > 0.95


@pytest.mark.backend
def test_a_model_compiled_with_it_comes_back_from_its_file(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile("sgd", loss=VarifocalLoss(gamma=1.25))
    x, y = np.ones((4, 3), "float32"), np.full((4, 2), 0.5, "float32")
    model.fit(x, y, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.loss.gamma == 1.25
    assert loaded.evaluate(x, y, verbose=0) == model.evaluate(x, y, verbose=0)


def test_it_runs_in_a_graph_of_unknown_sizes():
    if keras.backend.backend() != "tensorflow":
        pytest.skip("tf.function")
    import tensorflow as tf

    targets = np.random.default_rng(0).uniform(size=(2, 5, 3)).astype("float32")
    logits = np.random.default_rng(1).normal(size=(2, 5, 3)).astype("float32")
    spec = tf.TensorSpec((None, None, None))
    for jit_compile in (False, True):
        traced = tf.function(
            VarifocalLoss(), input_signature=[spec, spec], jit_compile=jit_compile
        )
        np.testing.assert_allclose(
            traced(targets, logits), VarifocalLoss()(targets, logits), rtol=1e-6
        )
