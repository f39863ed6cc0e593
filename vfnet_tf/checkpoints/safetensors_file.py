"""`.safetensors` files as numpy arrays, without PyTorch."""

import json
import math
import operator
import os
import pathlib

import numpy as np

from vfnet_tf.files import replacing
from vfnet_tf.foreign_text import clipped

#: Most bytes of a header; those of large models have some hundred thousand.
MAX_HEADER = 2**26

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
    try:
        notes = _check_header(path).get("__metadata__") or {}
        entries = library.deserialize(pathlib.Path(path).read_bytes())
    except Exception as error:  # the library's class differs by version
        raise ValueError(
            "The file must be whole and in the safetensors format. "
            f"Received: {path}: {clipped(str(error))}"
        ) from error
    return {name: _to_array(name, entry, path) for name, entry in entries}, notes


def _check_header(path):
    """The header, a dict, if the file has what it claims.

    Eight bytes of length, then JSON, then the bytes of the tensors.
    """
    total = os.path.getsize(path)
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= min(total - 8, MAX_HEADER):
            raise ValueError(f"a header of {length} bytes in a file of {total}")
        header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("its header must be a JSON object")
    last = 0
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            begin, end = map(operator.index, entry["data_offsets"])
            shape = [*map(operator.index, entry["shape"])]
            dtype = str(entry["dtype"])
        except (TypeError, KeyError, ValueError):
            raise ValueError(f"no dtype, shape and offsets of {name}") from None
        if min([begin, *shape]) < 0 or not begin <= end <= total - 8 - length:
            raise ValueError(f"{name} lies outside of the file")
        width = 2 if dtype == "BF16" else np.dtype(_DTYPES.get(dtype, "V0")).itemsize
        if width and math.prod(shape) * width != end - begin:
            raise ValueError(f"{name} of the shape {shape} has {end - begin} bytes")
        last = max(last, end)
    if last != total - 8 - length:
        raise ValueError(f"tensors of {last} bytes in {total - 8 - length}")
    return header


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
