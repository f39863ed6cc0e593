import keras
import numpy as np
import pytest

from vfnet_tf.checkpoints.tensors import (
    assign_tensors,
    match_tensors,
    pytorch_shape,
    raise_problems,
    to_keras_layout,
    to_numpy,
    to_pytorch_layout,
)


@pytest.fixture
def variables():
    return {
        "a.weight": keras.Variable(np.zeros((1, 2, 3, 4), "float32")),
        "a.bias": keras.Variable(np.zeros(4, "float32")),
        "scale": keras.Variable(np.float32(1)),
    }


@pytest.fixture
def tensors():
    return {
        "a.weight": np.arange(24, dtype="float32").reshape(4, 3, 1, 2),
        "a.bias": np.ones(4, "float32"),
        "scale": np.array(2, "float32"),
    }


def test_kernels_are_turned_round_and_others_kept():
    kernel = np.arange(24).reshape(4, 3, 2, 1)
    turned = to_keras_layout(kernel)
    assert turned.shape == (2, 1, 3, 4)
    assert turned[1, 0, 2, 3] == kernel[3, 2, 1, 0]
    np.testing.assert_array_equal(to_pytorch_layout(turned), kernel)
    for turn in (to_keras_layout, to_pytorch_layout):
        np.testing.assert_array_equal(turn(np.arange(3)), [0, 1, 2])


def test_tensors_that_fit_have_no_problems(variables, tensors):
    values, problems = match_tensors(variables, tensors)
    assert problems == []
    assign_tensors(variables, values)
    for name, tensor in tensors.items():
        assert pytorch_shape(variables[name]) == tensor.shape
        stored = to_numpy(variables[name])
        np.testing.assert_array_equal(to_pytorch_layout(stored), tensor)


def test_every_kind_of_problem_is_found(variables, tensors):
    tensors["a.bias"] = np.ones(5, "float32")
    tensors["a.weight"] = tensors["a.weight"].astype("int32")
    tensors["other"] = tensors.pop("scale")
    _, problems = match_tensors(variables, tensors)
    assert sorted(problems) == [
        "dtype: a.weight is int32, not a float",
        "missing: scale",
        "not in the model: other",
        "shape: a.bias is (5,) in Keras's layout, the model's (4,)",
    ]


def test_a_tensor_that_may_be_missing_is_no_problem(variables, tensors):
    del tensors["scale"]
    values, problems = match_tensors(variables, tensors, lambda name: name == "scale")
    assert problems == []
    assert "scale" not in values


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_floats_become_float32(variables, tensors, dtype):
    tensors = {name: tensor.astype(dtype) for name, tensor in tensors.items()}
    values, problems = match_tensors(variables, tensors)
    assert problems == []
    assert {value.dtype.name for value in values.values()} == {"float32"}


def test_dtypes_of_pytorch_are_widened_or_named(variables, tensors):
    torch = pytest.importorskip("torch")
    tensors["a.bias"] = torch.tensor([1.0, 2.5, -3.0, 0.0], dtype=torch.bfloat16)
    values, problems = match_tensors(variables, tensors)
    assert problems == []
    np.testing.assert_array_equal(values["a.bias"], [1.0, 2.5, -3.0, 0.0])
    tensors["a.bias"] = torch.ones(4).to_sparse()
    _, problems = match_tensors(variables, tensors)
    assert len(problems) == 1 and problems[0].startswith("dtype: a.bias cannot")


def test_problems_are_raised_with_their_number_and_a_hint():
    raise_problems([], "It does not fit")
    with pytest.raises(ValueError) as error:
        raise_problems(["missing: a"], "It does not fit", "Perhaps b.")
    assert str(error.value) == (
        "It does not fit (1 problem), nothing was loaded:\n  Perhaps b.\n  missing: a"
    )
