"""Tensors of foreign checkpoints: layouts, dtypes, and a check against a model."""

import keras
import numpy as np

#: Dtypes that are converted to float32; a tensor of any other dtype is an error.
_FLOATS = ("float16", "bfloat16", "float32", "float64")


def to_keras_layout(array):
    """PyTorch's `(out, in, h, w)` kernels to Keras's `(h, w, in, out)`; others as is."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array


def to_pytorch_layout(array):
    """The inverse of `to_keras_layout`."""
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array


def pytorch_shape(variable):
    """Shape of a Keras variable in PyTorch's layout, a tuple."""
    shape = tuple(variable.shape)
    return (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape


def to_array(value):
    """An array or a PyTorch tensor as numpy, bfloat16 as float32."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        # numpy has no such type.
        if str(value.dtype) == "torch.bfloat16":
            value = value.float()
    return np.asarray(value)


def match_tensors(variables, tensors, may_lack=None):
    """Compares the tensors of a checkpoint with the variables of a model.

    Args:
        variables: dict from name to Keras variable.
        tensors: dict from name to array in PyTorch's layout.
        may_lack: function from a name to whether the checkpoint may lack it; None for
            none.

    Returns:
        (dict from name to float32 array in Keras's layout, list of problems: each
        tensor that is missing, left over, misshapen or no float).
    """
    problems = [
        f"missing: {name}"
        for name in variables
        if name not in tensors and not (may_lack is not None and may_lack(name))
    ]
    problems += [
        f"not in the model: {name}" for name in tensors if name not in variables
    ]
    values = {}
    for name, variable in variables.items():
        if name not in tensors:
            continue
        try:
            array = to_array(tensors[name])
        except (TypeError, RuntimeError) as error:  # sparse, quantised, 8 bits
            problems.append(f"dtype: {name} cannot become an array: {error}")
            continue
        if array.dtype.name not in _FLOATS:
            problems.append(f"dtype: {name} is {array.dtype.name}, not a float")
            continue
        value = to_keras_layout(array)
        if tuple(value.shape) != tuple(variable.shape):
            problems.append(
                f"shape: {name} is {tuple(value.shape)} in Keras's layout, "
                f"the model's {tuple(variable.shape)}"
            )
            continue  # not copied: an expanded view may exceed the memory
        values[name] = value.astype("float32", copy=False)
    return values, problems


def assign_tensors(variables, values):
    """Assigns the values of `match_tensors` to the variables."""
    for name, value in values.items():
        variables[name].assign(value)


def raise_problems(problems, subject, hint=None):
    """Raises a `ValueError` that lists all problems; nothing if there are none.

    Args:
        problems: list of str.
        subject: str such as "The checkpoint does not fit the detector".
        hint: str, the possible cause, or None.
    """
    if not problems:
        return
    count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
    lines = [f"{subject} ({count}), nothing was loaded:", *problems]
    if hint is not None:
        lines.insert(1, hint)
    raise ValueError("\n  ".join(lines))


def to_numpy(variable):
    """A copy of a Keras variable as a numpy array, C-contiguous."""
    return np.array(keras.ops.convert_to_numpy(variable), order="C")
