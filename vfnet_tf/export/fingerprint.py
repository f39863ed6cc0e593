"""SHA-256 of weights and config, to tell whether an export is of a certain run."""

import hashlib
import json
import pathlib
import tempfile

from vfnet_tf import config as configs


def weights_sha256(detector):
    """The SHA-256 of a built detector's weights: 64 hexadecimal digits.

    It is `file_sha256` of the file that `save_weights` writes, and does not depend on the
    names of layers.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "detector.weights.h5"
        detector.save_weights(path)
        return file_sha256(path)


def file_sha256(path):
    """The SHA-256 of the weights in a `.weights.h5`: 64 hexadecimal digits.

    It is taken over all weights, sorted by the code points of their names in the file:
    the name in UTF-8, a zero byte, dtype and shape as in `float32[3,3,64,64]`, a zero
    byte, and the values in C order, little-endian. The optimizer's state is left out.
    """
    import h5py

    with h5py.File(path, "r") as file:
        items = {}
        file.visititems(lambda name, item: items.update({name: item}))
        digest = hashlib.sha256()
        for name, item in sorted(items.items()):
            # `last.weights.h5` has the optimizer's state beside the weights.
            if not isinstance(item, h5py.Dataset) or name.startswith("optimizer/"):
                continue
            values = item[()]
            shape = ",".join(map(str, values.shape))
            digest.update(f"{name}\0{values.dtype.name}[{shape}]\0".encode())
            little = values.dtype.newbyteorder("<")
            digest.update(values.astype(little, order="C").tobytes())
    return digest.hexdigest()


def config_fields(config):
    """A config as a dict of JSON types, like one that was read from a file.

    The int 8 in a float field becomes 8.0.
    """
    return configs.to_dict(configs.from_dict(configs.to_dict(config)))


def config_sha256(config):
    """The SHA-256 of all fields as JSON with sorted keys, without spaces, in UTF-8."""
    style = {"sort_keys": True, "separators": (",", ":"), "ensure_ascii": False}
    text = json.dumps(config_fields(config), **style)
    return hashlib.sha256(text.encode()).hexdigest()
