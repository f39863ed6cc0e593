import contextlib
import json
import pathlib
import re

import keras
import numpy as np
import pytest
from keras import ops

from tests.contracts import assert_same_bits, to_numpy
from vfnet_tf.training.optimizers import SGD, AdamW, clip_by_global_norm, is_bias
from vfnet_tf.training.schedules import WarmupStepSchedule

pytestmark = pytest.mark.backend

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "bias_multipliers.json"
OFFICIAL_NORMS = re.compile(r"(bn\d|gn|downsample\.1)\.bias$")


def make_variable(value, path):
    """A `keras.Variable` with the given path, outside any layer."""
    *scopes, name = path.split("/")
    with contextlib.ExitStack() as stack:
        for scope in scopes:
            stack.enter_context(keras.name_scope(scope))
        return keras.Variable(np.asarray(value, "float32"), name=name)


class TorchSGD:
    """torch.optim.SGD for one array, in float64, from its documentation."""

    def __init__(self, momentum, weight_decay, nesterov=False):
        self.momentum, self.weight_decay = momentum, weight_decay
        self.nesterov, self.buffer = nesterov, None

    def step(self, weight, gradient, learning_rate):
        gradient = gradient + self.weight_decay * weight
        if self.momentum:
            if self.buffer is None:
                self.buffer = gradient.copy()
            else:
                self.buffer = self.momentum * self.buffer + gradient
            if self.nesterov:
                gradient = gradient + self.momentum * self.buffer
            else:
                gradient = self.buffer
        return weight - learning_rate * gradient


def test_two_steps_by_hand():
    kernel = make_variable([1.0], "conv/kernel")
    optimizer = SGD(0.1, momentum=0.5, weight_decay=0.2)
    # g = 1 + .2 * 1 = 1.2 = v;  w = 1 - .1 * 1.2 = .88
    optimizer.apply([ops.convert_to_tensor([1.0])], [kernel])
    np.testing.assert_allclose(to_numpy(kernel), [0.88], rtol=1e-6)
    # g = 2 + .2 * .88 = 2.176;  v = .6 + 2.176 = 2.776;  w = .88 - .2776
    optimizer.apply([ops.convert_to_tensor([2.0])])
    np.testing.assert_allclose(to_numpy(kernel), [0.6024], rtol=1e-6)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_follows_torch_across_changes_of_the_learning_rate(momentum, nesterov):
    rng = np.random.default_rng(0)
    weights = {"conv/kernel": rng.normal(size=3), "conv/bias": rng.normal(size=2)}
    torch = {
        "conv/kernel": TorchSGD(momentum, 0.01, nesterov),
        "conv/bias": TorchSGD(momentum, 0.0, nesterov),
    }
    variables = [make_variable(value, path) for path, value in weights.items()]
    optimizer = SGD(0.1, momentum, nesterov and momentum > 0, weight_decay=0.01)
    for rate in [0.1, 0.1, 0.01, 0.5, 0.5]:
        optimizer.build(variables)
        optimizer.learning_rate = rate
        gradients = [rng.normal(size=value.shape) for value in weights.values()]
        optimizer.apply([ops.cast(g, "float32") for g in gradients], variables)
        for (path, value), gradient in zip(weights.items(), gradients, strict=True):
            own_rate = 2 * rate if path == "conv/bias" else rate
            weights[path] = torch[path].step(value, gradient, own_rate)
    for variable, expected in zip(variables, weights.values(), strict=True):
        found = to_numpy(variable)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_rate_zero_stops_at_once_although_momentum_goes_on():
    kernel = make_variable([1.0], "conv/kernel")
    optimizer = SGD(1.0, momentum=0.9, weight_decay=0.0)
    optimizer.apply([ops.ones(1)], [kernel])
    before = to_numpy(kernel).copy()
    optimizer.learning_rate = 0.0
    optimizer.apply([ops.ones(1)], [kernel])
    np.testing.assert_array_equal(to_numpy(kernel), before)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("vfnet/head/vfnet_reg/bias", True),
        ("bias", True),
        ("vfnet/head/vfnet_reg/kernel", False),
        ("vfnet/head/cls_conv_0/group_norm/beta", False),
        ("vfnet/backbone/layer2_0/conv2/conv_offset/bias", False),
        ("vfnet/backbone/layer2_0/conv2_conv_offset/bias", False),
        ("vfnet/head/bias_free/scale", False),
        ("my_bias/kernel", False),
    ],
)
def test_only_biases_of_ordinary_layers_are_biases(path, expected):
    assert is_bias(path) is expected


def test_layers_of_keras_get_the_multipliers_of_the_official_configs():
    model = keras.Sequential(
        [
            keras.Input((4, 4, 3)),
            keras.layers.Conv2D(2, 3, name="conv"),
            keras.layers.GroupNormalization(2, name="gn"),
            keras.layers.Conv2D(2, 1, name="conv_offset"),
            keras.layers.BatchNormalization(name="bn"),
        ],
        name="tiny",
    )
    optimizer = SGD(0.01)
    found = {v.path: optimizer.multipliers(v) for v in model.trainable_variables}
    assert found.pop("tiny/conv/bias") == (2.0, 0.0)
    assert set(found.values()) == {(1.0, 1.0)}
    assert {"tiny/gn/beta", "tiny/conv_offset/bias"} <= set(found)


@pytest.mark.parametrize(
    ("config", "lr_multiplier", "decay_multiplier"),
    [
        ("vfnet_r50_fpn_1x_coco", 2.0, 0.0),
        ("vfnet_r50_fpn_mdconv_c3-c5_mstrain_2x_coco", 2.0, 0.0),
        ("vfl_retinanet_r50_fpn_4x4_1x_coco", 1.0, 1.0),
    ],
)
def test_multipliers_equal_the_official_record(config, lr_multiplier, decay_multiplier):
    recorded = json.loads(GOLDEN.read_text())[config]
    optimizer = SGD(
        bias_lr_multiplier=lr_multiplier, bias_decay_multiplier=decay_multiplier
    )
    assert recorded["others"] == [[1.0, 1.0]]
    for name, expected in recorded["biases"].items():
        path = name.replace(".", "/")
        if OFFICIAL_NORMS.search(name):
            path = path.removesuffix("bias") + "beta"
        assert list(optimizer.multipliers(make_variable([0.0], path))) == expected, name


@pytest.mark.parametrize(("weight_decay", "expected"), [(0.5, 0.5), (None, 1.0)])
def test_variables_decay_unless_excluded(weight_decay, expected):
    kernel = make_variable([1.0], "conv/kernel")
    scale = make_variable([1.0], "conv/scale")
    optimizer = SGD(1.0, momentum=0.0, weight_decay=weight_decay)
    optimizer.exclude_from_weight_decay(var_names=["scale"])
    optimizer.apply([ops.zeros(1), ops.zeros(1)], [kernel, scale])
    np.testing.assert_allclose(to_numpy([kernel, scale]), [[expected], [1.0]])


def test_config_round_trip_keeps_every_argument():
    config = {
        "learning_rate": 0.5,
        "momentum": 0.8,
        "nesterov": True,
        "weight_decay": 0.3,
        "bias_lr_multiplier": 3.0,
        "bias_decay_multiplier": 0.25,
        "name": "other",
        "clipnorm": 7.0,
        "summed_clipnorm": 8.0,
    }
    first = SGD(**config)
    saved = keras.saving.serialize_keras_object(first)
    second = keras.saving.deserialize_keras_object(saved)
    assert isinstance(second, SGD)
    for name, value in config.items():
        found = getattr(second, name)
        assert (float(found) if name == "learning_rate" else found) == value, name


def test_works_in_fit_and_saves_its_velocity(tmp_path):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(optimizer=SGD(0.01), loss="mse")
    x = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
    y = x.sum(axis=1, keepdims=True)
    losses = model.fit(x, y, epochs=5, batch_size=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0]

    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(loaded.optimizer, SGD)
    assert_same_bits(loaded.optimizer.variables, model.optimizer.variables)


@pytest.mark.parametrize(
    "argument",
    ["weight_decay", "bias_lr_multiplier", "bias_decay_multiplier", "summed_clipnorm"],
)
def test_negative_arguments_are_refused(argument):
    with pytest.raises(ValueError, match=f"Received: {argument}=-1"):
        SGD(0.1, **{argument: -1.0})


def test_two_replicas_step_as_one_with_the_summed_gradient(two_devices):
    import tensorflow as tf

    from vfnet_tf.training.strategies import make_strategy

    start = {"conv/kernel": 1.0, "conv/bias": 2.0}
    single = [make_variable([value], path) for path, value in start.items()]
    optimizer = SGD(0.1, weight_decay=0.5)
    for gradient in [3.0, 5.0]:
        optimizer.apply([ops.full((1,), gradient)] * 2, single)

    strategy = make_strategy("mirrored", two_devices)
    with strategy.scope():
        mirrored = [make_variable([value], path) for path, value in start.items()]
        optimizer = SGD(0.1, weight_decay=0.5)
        optimizer.build(mirrored)

    @tf.function
    def step(total):
        def replica_step():
            context = tf.distribute.get_replica_context()
            # 1/4 of the gradient from replica 0, 3/4 from replica 1.
            share = tf.cast(context.replica_id_in_sync_group, "float32") / 2 + 0.25
            optimizer.apply([tf.fill((1,), share * total)] * 2, mirrored)

        strategy.run(replica_step)

    step(3.0)
    step(5.0)
    for expected, variable in zip(single, mirrored, strict=True):
        for copy in variable.value.values:
            np.testing.assert_allclose(copy.numpy(), expected.numpy(), rtol=1e-6)


def test_gradients_are_scaled_together_by_hand():
    # A norm of 13: 3, 4 and 12.
    gradients = [
        ops.convert_to_tensor([3.0, 4.0]),
        None,
        ops.convert_to_tensor([[12.0]]),
    ]
    first, none, second = clip_by_global_norm(gradients, 6.5)
    np.testing.assert_allclose(to_numpy(first), [1.5, 2.0], rtol=1e-6)
    np.testing.assert_allclose(to_numpy(second), [[6.0]], rtol=1e-6)
    assert none is None
    first, _, second = clip_by_global_norm(gradients, 14.0)
    np.testing.assert_array_equal(to_numpy(first), [3.0, 4.0])
    np.testing.assert_array_equal(to_numpy(second), [[12.0]])


def test_the_decay_is_added_to_the_clipped_gradient():
    kernel = make_variable([4.0], "conv/kernel")
    optimizer = SGD(1.0, momentum=0.0, weight_decay=0.5, summed_clipnorm=1.0)
    optimizer.apply([ops.full((1,), 10.0)], [kernel])
    np.testing.assert_allclose(to_numpy(kernel), [4.0 - 1.0 - 0.5 * 4.0])


def two_variables():
    return [make_variable([1.0, -1.0], "a/kernel"), make_variable([2.0], "a/bias")]


def uneven_gradients(replica):
    """Gradients of two variables over three steps, from opposite to much larger."""
    steps = [([3.0, 4.0], [1.0]), ([0.1, -0.2], [0.05]), ([-30.0, 4.0], [2.0])]
    shares = [(0.9, 0.1), (-1.0, 2.0), (3.0, -2.0)]
    return [
        [np.float32(share[replica]) * np.asarray(g, "float32") for g in gradients]
        for gradients, share in zip(steps, shares, strict=True)
    ]


@pytest.mark.parametrize("kind", [SGD, AdamW])
def test_two_replicas_clip_the_sum_as_one_device_does(kind, two_devices):
    import tensorflow as tf

    from vfnet_tf.training.strategies import check_settings, make_strategy

    def one_device(clip):
        single = two_variables()
        optimizer = kind(0.1, weight_decay=0.01, summed_clipnorm=clip)
        for ours, theirs in zip(uneven_gradients(0), uneven_gradients(1), strict=True):
            pairs = zip(ours, theirs, strict=True)
            optimizer.apply([tf.constant(a + b) for a, b in pairs], single)
        return [variable.numpy() for variable in single]

    strategy = make_strategy("mirrored", two_devices)
    with strategy.scope():
        mirrored = two_variables()
        optimizer = kind(0.1, weight_decay=0.01, summed_clipnorm=1.0)
        optimizer.build(mirrored)
    check_settings(strategy, optimizer=optimizer)

    @tf.function
    def step(number):
        def replica_step():
            context = tf.distribute.get_replica_context()
            is_first = context.replica_id_in_sync_group == 0
            pairs = zip(*(uneven_gradients(i)[number] for i in (0, 1)), strict=True)
            optimizer.apply([tf.where(is_first, *pair) for pair in pairs], mirrored)

        strategy.run(replica_step)

    for number in range(3):
        step(number)
    expected = one_device(1.0)
    assert np.abs(one_device(None)[0] - expected[0]).max() > 1e-2
    for found, value in zip(mirrored, expected, strict=True):
        for copy in found.value.values:
            np.testing.assert_allclose(copy.numpy(), value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [SGD, AdamW])
def test_accumulated_batches_step_as_one_of_their_mean(kind):
    """With momentum, decay, clipping, a schedule and a moving average."""

    def make(**more):
        schedule = WarmupStepSchedule(0.1, 2, 0.5, boundaries=[3])
        settings = {"weight_decay": 0.01, "summed_clipnorm": 2.0}
        settings.update(use_ema=True, ema_momentum=0.5)
        return kind(schedule, **settings, **more)

    rng = np.random.default_rng(0)
    batches = rng.normal(0, 3, (5, 3, 2)).astype("float32")
    single, one = two_variables(), make()
    several, accumulating = two_variables(), make(gradient_accumulation_steps=3)
    for batch in batches:
        for gradient in batch:
            accumulating.apply(
                [ops.convert_to_tensor(gradient), ops.convert_to_tensor(gradient[:1])],
                several,
            )
        mean = batch.mean(axis=0)
        one.apply(
            [ops.convert_to_tensor(mean), ops.convert_to_tensor(mean[:1])], single
        )
        averages = zip(
            [*single, *one._model_variables_moving_average],
            [*several, *accumulating._model_variables_moving_average],
            strict=True,
        )
        for expected, found in averages:
            expected, found = map(ops.convert_to_numpy, (expected, found))
            np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)
    assert int(to_numpy(accumulating.iterations)) == 5
    rates = [float(to_numpy(o.learning_rate)) for o in (one, accumulating)]
    np.testing.assert_allclose(rates, 0.01, rtol=1e-6)


def test_adamw_without_clipping_is_that_of_keras():
    ours = make_variable([1.0, -2.0], "a/kernel")
    theirs = make_variable([1.0, -2.0], "a/kernel")
    first = AdamW(0.1, weight_decay=0.1)
    second = keras.optimizers.AdamW(0.1, weight_decay=0.1)
    for gradient in ([3.0, -1.0], [0.5, 2.0]):
        first.apply([ops.convert_to_tensor(gradient)], [ours])
        second.apply([ops.convert_to_tensor(gradient)], [theirs])
    assert_same_bits(ours, theirs)
    saved = keras.saving.serialize_keras_object(AdamW(0.1, summed_clipnorm=3.0))
    loaded = keras.saving.deserialize_keras_object(saved)
    assert isinstance(loaded, AdamW) and loaded.summed_clipnorm == 3.0
