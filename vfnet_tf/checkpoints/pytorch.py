"""Import of the official PyTorch checkpoints."""

import os
from collections.abc import Mapping

import numpy as np

from vfnet_tf.checkpoints.names import is_ignorable, official_variables


def load_pytorch_checkpoint(detector, checkpoint):
    """Loads a checkpoint of the official implementation, strictly.

    Args:
        detector: a `VFNet` of the checkpoint's architecture and class count.
        checkpoint: path of a `.pth` file (read by PyTorch with `weights_only=True`), or
            a mapping from official names to arrays in PyTorch's layout. A mapping with
            the key `"state_dict"` stands for what that holds.

    Returns:
        The detector.

    Raises:
        ValueError: if a tensor is missing, left over or misshapen; all are listed, and
            no weight has been changed.
    """
    if isinstance(checkpoint, str | os.PathLike):
        checkpoint = _read_pth(checkpoint)
    if not isinstance(checkpoint, Mapping):
        raise ValueError(
            "`checkpoint` must be a path or a mapping of names to arrays. "
            f"Received: {type(checkpoint).__name__}"
        )
    tensors = checkpoint.get("state_dict", checkpoint)
    tensors = {name: t for name, t in tensors.items() if not is_ignorable(name)}
    variables = official_variables(detector)
    problems = [f"missing: {name}" for name in variables if name not in tensors]
    problems += [
        f"not in the model: {name}" for name in tensors if name not in variables
    ]
    values = {}
    for name, variable in variables.items():
        if name not in tensors:
            continue
        value = to_keras_layout(np.asarray(tensors[name]))
        if tuple(value.shape) != tuple(variable.shape):
            problems.append(
                f"shape: {name} is {tuple(value.shape)} in Keras's layout, "
                f"the model's {tuple(variable.shape)}"
            )
        values[name] = value
    if problems:
        raise ValueError(
            f"The checkpoint does not fit the detector ({len(problems)} problems), "
            "nothing was loaded:\n  " + "\n  ".join(problems)
        )
    for name, variable in variables.items():
        variable.assign(values[name])
    return detector


def to_keras_layout(array):
    """PyTorch's `(out, in, h, w)` kernels to Keras's `(h, w, in, out)`; others as is."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array


def _read_pth(path):
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            "Reading a .pth file needs PyTorch: pip install 'vfnet_tf[torch]'."
        ) from error
    # Never a pickle that can run code: only tensors and plain containers.
    loaded = torch.load(path, map_location="cpu", weights_only=True)
    loaded = loaded.get("state_dict", loaded)
    return {name: tensor.numpy() for name, tensor in loaded.items()}
