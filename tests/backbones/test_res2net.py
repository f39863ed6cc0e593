import keras
import numpy as np
import pytest

from tests import contracts
from vfnet_tf.backbones import Res2Net
from vfnet_tf.backbones.res2net import _SymmetricAveragePool

IMAGE = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype("float32")


@pytest.fixture(scope="module")
def res2net50():
    return Res2Net(50)


def test_shapes_round_up_at_every_stride(res2net50):
    spec = res2net50(keras.KerasTensor((2, 70, 101, 3)))
    sizes = [(18, 26), (9, 13), (5, 7), (3, 4)]
    for number, (height, width) in enumerate(sizes):
        assert spec[f"C{number + 2}"].shape == (2, height, width, 256 * 2**number)


def test_symbolic_shapes_are_the_real_ones(res2net50):
    images = np.zeros((1, 70, 101, 3), "float32")
    symbolic = res2net50(keras.KerasTensor(images.shape))
    for level, value in res2net50(images).items():
        assert tuple(value.shape) == tuple(symbolic[level].shape)


@pytest.mark.backend
def test_the_pooling_counts_the_zeros_around():
    ones = np.ones((1, 3, 4, 1), "float32")
    found = contracts.to_numpy(_SymmetricAveragePool()(ones))[0, ..., 0]
    np.testing.assert_allclose(found, np.array([[4, 6], [4, 6]]) / 9, rtol=1e-6)


@pytest.mark.backend
def test_a_last_odd_row_of_the_shortcut_is_a_mean_without_zeros():
    # What `_block` relies on: Keras's "same" pooling on each backend.
    ones = np.ones((1, 3, 5, 1), "float32")
    layer = keras.layers.AveragePooling2D(2, 2, "same")
    found = contracts.to_numpy(layer(ones))
    np.testing.assert_allclose(found, np.ones((1, 2, 3, 1)), rtol=1e-6)


@pytest.mark.parametrize(
    ("frozen_stages", "first_trained"),
    [(-1, "stem0"), (0, "layer1_0"), (1, "layer2_0")],
)
def test_frozen_stages_have_no_trained_weights(frozen_stages, first_trained):
    trained = Res2Net(50, frozen_stages=frozen_stages).trainable_variables
    assert trained[0].path.split("/")[-3].startswith(first_trained)


def test_statistics_are_trained_when_asked_for():
    model = Res2Net(50, norm="batch_norm", frozen_stages=-1)
    norm = model.get_layer("layer3_1_convs2").norm_layer
    before = contracts.to_numpy(norm.moving_mean)
    model(IMAGE, training=True)
    assert np.any(contracts.to_numpy(norm.moving_mean) != before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 18}, "`depth`.*depth=18"),
        ({"scales": 1}, "`scales`.*scales=1"),
        ({"frozen_stages": 5}, "frozen_stages=5"),
        ({"deformable": ("P3",)}, "deformable"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Res2Net(**arguments)


def test_its_config_is_complete():
    arguments = {
        "depth": 50,
        "base_width": 8,
        "scales": 3,
        "deformable": ("C5",),
        "norm": "batch_norm",
        "frozen_stages": 2,
    }
    model = Res2Net(
        **arguments, input_shape=(64, 96, 3), dtype="mixed_bfloat16", name="other"
    )
    copy = Res2Net.from_config(model.get_config())
    assert copy.get_layer("stem0").dtype_policy.name == "mixed_bfloat16"
    assert {name: getattr(copy, name) for name in arguments} == arguments
    assert copy.name == "other" and copy.input_shape == (None, 64, 96, 3)


def test_a_saved_model_gives_the_same_bits(tmp_path, res2net50):
    res2net50.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for level, value in contracts.to_numpy(res2net50(IMAGE)).items():
        found = contracts.to_numpy(loaded(IMAGE))[level]
        np.testing.assert_array_equal(found, value)
