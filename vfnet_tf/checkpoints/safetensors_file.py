"""`.safetensors` files as numpy arrays, without PyTorch."""

import json
import pathlib

import numpy as np

from vfnet_tf.files import replacing

_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


def read_safetensors(path):
    """Reads all tensors of a file.

    Args:
        path: of the file.

    Returns:
        (dict from name to array, bfloat16 as float32; dict of the file's notes, str to
        str).

    Raises:
        ValueError: if the file is damaged, or holds a dtype that weights do not have.
        ImportError: if the package safetensors is not installed.
    """
    library = _library("Reading")
    contents = pathlib.Path(path).read_bytes()
    try:
        entries = library.deserialize(contents)
    except Exception as error:  # its class differs by version
        raise ValueError(
            "The file must be whole and in the safetensors format. "
            f"Received: {path}: {error}"
        ) from error
    # The library has checked it: eight bytes of length, then JSON.
    length = int.from_bytes(contents[:8], "little")
    notes = json.loads(contents[8 : 8 + length]).get("__metadata__") or {}
    return {name: _to_array(name, entry, path) for name, entry in entries}, notes


def write_safetensors(path, tensors, notes=None):
    """Writes arrays to a file, which appears whole or not at all.

    Args:
        path: of the file; an older one is replaced.
        tensors: dict from name to C-contiguous array.
        notes: dict of str to str that the file also holds, or None.

    Raises:
        ImportError: if the package safetensors is not installed.
    """
    _library("Writing")
    from safetensors.numpy import save_file

    with replacing(path) as temporary:
        save_file(dict(tensors), temporary, metadata=notes)


def _library(doing):
    try:
        import safetensors
    except ImportError as error:
        raise ImportError(
            f"{doing} a .safetensors file needs the package of that name: "
            "pip install 'vfnet_tf[safetensors]'."
        ) from error
    return safetensors


def _to_array(name, entry, path):
    dtype, shape, data = entry["dtype"], entry["shape"], entry["data"]
    if dtype == "BF16":
        # The upper half of a float32.
        wide = np.frombuffer(data, "<u2").astype("<u4") << 16
        return wide.view("<f4").reshape(shape)
    if dtype not in _DTYPES:
        raise ValueError(
            f"Tensors must be of one of the dtypes {', '.join(_DTYPES)}, BF16. "
            f"Received: {name} of dtype {dtype} in {path}"
        )
    return np.frombuffer(data, _DTYPES[dtype]).reshape(shape)
