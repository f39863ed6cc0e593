import keras
import numpy as np
import pytest

from tests import contracts
from vfnet_tf.losses import VarifocalLoss, varifocal_loss
from vfnet_tf.losses.pairs import logits_from_probabilities


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
