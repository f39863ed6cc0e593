"""Checks of targets, predictions and weights that all losses share."""

import keras
import numpy as np
import pytest

from tests import contracts
from vfnet_tf import losses

NAMES = losses.__all__
SCORES = [name for name in NAMES if "focal" in name.lower()]
CLASSES = [name for name in NAMES if name.endswith("Loss")]
is_tensorflow = keras.backend.backend() == "tensorflow"


def make(name, **settings):
    """A loss by its name; a class with its defaults but for `settings`."""
    loss = getattr(losses, name)
    return loss(**settings) if isinstance(loss, type) else loss


def traced(loss, *arrays):
    """What a loss gives in a graph, or compiled."""
    if is_tensorflow:
        import tensorflow as tf

        loss = tf.function(loss)
    return contracts.evaluate(loss, *arrays)


def total(values):
    return float(np.sum(contracts.to_numpy(values)))


def pair(name, shape=(2, 5)):
    """Targets and predictions that fit, float32 `[*shape, C]`."""
    rng = np.random.default_rng(0)
    if name.lower().startswith("giou"):
        corners = rng.uniform(0, 9, (*shape, 2))
        boxes = np.concatenate([corners, corners + 4], axis=-1).astype("float32")
        return boxes, boxes + np.float32(0.5)
    predictions = rng.normal(size=(*shape, 4)).astype("float32")
    return np.eye(4, dtype="float32")[np.zeros(shape, int)], predictions


#: From targets `[2, 5, 4]` to what is given in their place.
MISFITS = {
    "labels [B]": lambda x: np.array([2, 0]),
    "labels [B, 1]": lambda x: np.array([[2], [0]]),
    "labels [B, P]": lambda x: x[..., 0].astype("int32"),
    "labels [B, P, 1]": lambda x: x[..., :1].astype("int32"),
    "one image": lambda x: x[:1],
    "one point": lambda x: x[:, :1],
    "one point for all": lambda x: x[0, 0],
    "a target too many": lambda x: np.concatenate([x, x[:, :1]], axis=1),
    "an image too many": lambda x: np.concatenate([x, x[:1]]),
    "a class too many": lambda x: np.concatenate([x, x[..., :1]], axis=-1),
    "an axis too many": lambda x: x[None],
    "a number": lambda x: 1.0,
}


@pytest.mark.backend
@pytest.mark.parametrize("name", NAMES)
def test_targets_of_another_shape_are_refused_with_both_shapes(name):
    targets, predictions = pair(name)
    calls = [make(name)]
    if name in CLASSES:
        calls.append(calls[0].call)
    for kind, change in MISFITS.items():
        given = change(targets)
        for call in calls:
            with pytest.raises(
                ValueError, match="Targets must have the shape"
            ) as error:
                call(given, predictions)
            message = str(error.value)
            assert str(np.shape(given)) in message and "(2, 5, 4)" in message, kind


@pytest.mark.backend
@pytest.mark.parametrize("name", NAMES)
def test_lists_integers_and_all_float_types_give_one_value_in_float32(name):
    targets, predictions = pair(name)
    predictions = np.round(predictions * 4) / 4  # the same in all types
    targets = np.round(targets)
    expected = contracts.to_numpy(make(name)(targets, predictions))
    given = [
        (targets.tolist(), predictions.tolist()),
        (targets.astype("int32"), predictions),
        (targets.astype("float64"), predictions.astype("float64")),
    ]
    for dtype in ("float16", "bfloat16"):
        given.append([keras.ops.cast(x, dtype) for x in (targets, predictions)])
    for values in given:
        found = make(name)(*values)
        assert keras.backend.standardize_dtype(found.dtype) == "float32"
        np.testing.assert_allclose(contracts.to_numpy(found), expected, rtol=1e-6)


@contracts.on_tensorflow
@pytest.mark.parametrize("name", NAMES)
def test_a_graph_of_open_sizes_broadcasts_nothing(name):
    import tensorflow as tf

    targets, predictions = pair(name)
    spec = tf.TensorSpec((None, None, 4))
    for jit_compile in (False, True):
        loss = tf.function(make(name), [spec, spec], jit_compile=jit_compile)
        expected = total(make(name)(targets, predictions))
        assert total(loss(targets, predictions)) == pytest.approx(expected, rel=1e-5)
        for misfit in (targets[:, :1], targets[:1]):
            with pytest.raises(tf.errors.InvalidArgumentError):
                loss(misfit, predictions)


@contracts.on_tensorflow
@pytest.mark.parametrize("name", NAMES)
def test_ragged_targets_are_refused_with_the_remedy(name):
    import tensorflow as tf

    targets, predictions = pair(name)
    ragged = tf.RaggedTensor.from_tensor(targets, ragged_rank=1)
    with pytest.raises(ValueError, match="to_tensor.*ragged targets"):
        make(name)(ragged, predictions)


@pytest.mark.backend
@pytest.mark.parametrize("name", SCORES)
def test_targets_that_are_no_scores_are_refused_or_make_the_loss_nan(name):
    targets, predictions = pair(name)
    rounded = targets.copy()
    rounded[0, 1] = [1.0078125, -0.0078125, 0, 0]  # bfloat16
    assert np.isfinite(total(make(name)(rounded, predictions)))
    for value in (2.0, 1.0625, -0.5, np.nan, np.inf):
        targets[0, 1, 2] = value
        with pytest.raises(ValueError, match=f"Received: {value} among the targets"):
            make(name)(targets, predictions)
    if keras.backend.backend() == "torch":
        return  # which does not trace
    targets[0, 1, 2] = 2.0
    found = traced(make(name), targets, predictions)
    if name in CLASSES:
        assert np.isnan(found)
    else:
        assert np.argwhere(np.isnan(found)).tolist() == [[0, 1, 2]]


@pytest.mark.backend
@pytest.mark.parametrize("name", sorted(set(CLASSES) & set(SCORES)))
def test_logits_in_place_of_probabilities_are_refused(name):
    targets, logits = pair(name)
    with pytest.raises(ValueError, match="from_logits=True.*among the predictions"):
        make(name, from_logits=False)(targets, logits)


@pytest.mark.backend
@pytest.mark.parametrize("name", ["SmoothL1Loss", "smooth_l1_loss"])
def test_a_nan_among_numbers_makes_the_loss_nan(name):
    targets, predictions = pair(name)
    targets[1, 2, 3] = np.nan
    assert np.isnan(total(make(name)(targets, predictions)))


@pytest.mark.backend
@pytest.mark.parametrize("name", ["GIoULoss", "giou_loss"])
def test_targets_that_are_no_boxes_are_refused_or_make_the_loss_nan(name):
    targets, predictions = pair(name)
    targets[0, 0] = [3, 3, 2.9999, 3]  # a point, but for the last digits
    assert np.isfinite(total(make(name)(targets, predictions)))
    # Inverted one way or both, a box as (x, y, width, height), NaN.
    for box in ([4, 0, 2, 2], [4, 4, 2, 2], [9, 1, 4, 4], [0, 0, 2, np.nan]):
        targets[1, 2] = box
        with pytest.raises(ValueError, match="x2 >= x1.*among the targets"):
            make(name)(targets, predictions)
    if keras.backend.backend() == "torch":
        return  # which does not trace
    found = traced(make(name), targets, predictions)
    where = np.argwhere(np.isnan(found)).tolist()
    assert where == ([[1, 2]] if name == "giou_loss" else [[]])


@pytest.mark.backend
def test_boxes_must_be_four_numbers():
    for call in (losses.giou_loss, losses.GIoULoss(), losses.GIoULoss().call):
        with pytest.raises(ValueError, match=r"x1, y1, x2, y2.*\(2, 5\)"):
            call(np.zeros((2, 5)), np.zeros((2, 5)))


#: Weights of losses [2, 5], and as what they count; None: refused.
WEIGHTS = {
    "a number": (0.5, 0.5),
    "of each image": ([1.0, 3.0], [[1.0], [3.0]]),
    "of each image, kept": ([[1.0], [3.0]], [[1.0], [3.0]]),
    "of each point": (np.arange(10.0).reshape(2, 5), np.arange(10.0).reshape(2, 5)),
    "with an axis": (np.arange(10.0).reshape(2, 5, 1), np.arange(10.0).reshape(2, 5)),
    "of points alone": (np.ones(5), None),
    "of classes": (np.ones((2, 5, 4)), None),
    "an image too many": (np.ones(3), None),
    "a point too many": (np.ones((2, 6)), None),
}


@pytest.mark.backend
@pytest.mark.parametrize("name", CLASSES)
def test_weights_go_along_the_first_axes_or_are_refused(name):
    targets, predictions = pair(name)
    each = contracts.to_numpy(make(name, reduction="none")(targets, predictions))
    for kind, (given, factors) in WEIGHTS.items():
        if factors is None:
            with pytest.raises(ValueError, match=r"`sample_weight`.*\(2, 5\)"):
                make(name)(targets, predictions, sample_weight=given)
            continue
        found = total(make(name)(targets, predictions, sample_weight=given))
        expected = float((each * np.asarray(factors)).sum())
        assert found == pytest.approx(expected, rel=1e-5), kind


@pytest.mark.backend
def test_as_many_points_as_images_do_not_turn_the_weights_around():
    targets, predictions = pair("FocalLoss", (2, 2))
    each = contracts.to_numpy(losses.FocalLoss(reduction="none")(targets, predictions))
    found = total(losses.FocalLoss()(targets, predictions, sample_weight=[1.0, 0.0]))
    assert found == pytest.approx(float(each[0].sum()), rel=1e-5)


@pytest.mark.backend
def test_a_mask_of_keras_counts_beside_the_check():
    from keras.src.backend import set_keras_mask

    targets, predictions = pair("VarifocalLoss")
    each = contracts.to_numpy(
        losses.VarifocalLoss(reduction="none")(targets, predictions)
    )
    mask = np.arange(10).reshape(2, 5) < 3
    predictions = keras.ops.convert_to_tensor(predictions)
    set_keras_mask(predictions, keras.ops.convert_to_tensor(mask))
    found = total(losses.VarifocalLoss()(targets, predictions))
    assert found == pytest.approx(float((each * mask).sum()), rel=1e-5)


def dense_model():
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.layers.Dense(4)])


@pytest.mark.backend
@pytest.mark.parametrize("name", NAMES)
def test_a_compiled_model_is_saved_and_loaded_with_it(tmp_path, name):
    inputs = np.random.default_rng(1).normal(size=(6, 3)).astype("float32")
    targets = pair(name, (6,))[0]
    model = dense_model()
    model.compile("sgd", make(name))
    expected = model.evaluate(inputs, targets, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    own = getattr(losses, name)
    assert isinstance(loaded.loss, own) if isinstance(own, type) else loaded.loss is own
    assert loaded.evaluate(inputs, targets, verbose=0) == pytest.approx(expected)


@pytest.mark.backend
@pytest.mark.parametrize("name", NAMES)
def test_it_is_found_by_its_registered_name(name):
    found = keras.losses.deserialize(keras.losses.serialize(make(name)))
    own = getattr(losses, name)
    assert type(found) is own if isinstance(own, type) else found is own
    assert keras.saving.get_registered_object(f"vfnet_tf>{name}") is own


def test_weights_of_images_and_of_points_count_in_fit_and_evaluate():
    inputs = np.random.default_rng(2).normal(size=(4, 5, 3)).astype("float32")
    targets = pair("VarifocalLoss", (4, 5))[0]
    of_points = np.zeros((4, 5), "float32")
    of_points[1] = 1
    expected = None
    for weights in (np.array([0.0, 1, 0, 0]), of_points):
        model = dense_model()
        model.compile("sgd", losses.VarifocalLoss())
        if expected is None:
            expected = model.evaluate(inputs[1:2], targets[1:2], verbose=0)
        settings = {"sample_weight": weights, "batch_size": 4, "verbose": 0}
        assert model.evaluate(inputs, targets, **settings) == pytest.approx(expected)
        history = model.fit(inputs, targets, **settings).history
        assert history["loss"] == [pytest.approx(expected)]


@pytest.mark.backend
def test_the_type_of_the_result_is_float32_or_as_told_and_is_kept():
    targets, predictions = pair("SmoothL1Loss")
    floatx = keras.config.floatx()
    keras.config.set_floatx("float16")
    try:
        # 70,000 is more than float16 has.
        loss = losses.SmoothL1Loss()
        assert total(loss(targets, targets + 3500)) == pytest.approx(1.4e5, rel=1e-3)
    finally:
        keras.config.set_floatx(floatx)
    half = losses.SmoothL1Loss(dtype="bfloat16")
    for loss in (half, losses.SmoothL1Loss.from_config(half.get_config())):
        found = loss(targets, predictions)
        assert keras.backend.standardize_dtype(found.dtype) == "bfloat16"
