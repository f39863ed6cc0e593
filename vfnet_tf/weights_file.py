"""A checksum inside a `.weights.h5`, so that a damaged file is told from a whole one."""

import json
import zlib

import h5py

#: The attribute of the file that holds the checksum.
SEAL = "vfnet_tf_checksum"
#: What h5py raises for a file that is damaged or cut short.
HDF5_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError)


def seal(path, *, again=True):
    """Writes the checksum of all arrays of an HDF5 file into the file.

    Args:
        path: of the file.
        again: bool; False leaves a checksum that is there.
    """
    with h5py.File(path, "a") as file:
        if again or SEAL not in file.attrs:
            file.attrs[SEAL] = _checksum(file)


def check_seal(path):
    """Reads an HDF5 file and compares its checksum. A file without one passes.

    Args:
        path: of a `.weights.h5`.

    Raises:
        ValueError: the arrays are not those that were written, or cannot be read; the
            message names the file.
    """
    try:
        with h5py.File(path, "r") as file:
            expected = file.attrs.get(SEAL)
            if expected is None or int(expected) == _checksum(file):
                return
    except FileNotFoundError:
        raise
    except HDF5_ERRORS as error:
        raise ValueError(f"The file is damaged: {path} ({error})") from error
    raise ValueError(
        f"The file is damaged: {path} (its arrays are not those that were written, by "
        "their checksum). Take another copy of it"
    )


def _checksum(file):
    """CRC-32 of names, types and values of all arrays of an open HDF5 file."""
    arrays = []
    file.visititems(
        lambda name, item: (
            arrays.append(name) if isinstance(item, h5py.Dataset) else None
        )
    )
    total = 0
    for name in sorted(arrays):
        array = file[name]
        about = json.dumps([name, str(array.dtype), array.shape])
        total = zlib.crc32(about.encode(), total)
        if array.size:
            values = array[()]
            is_text = array.dtype == object
            plain = repr(values).encode() if is_text else values.tobytes()
            total = zlib.crc32(plain, total)
    return total
