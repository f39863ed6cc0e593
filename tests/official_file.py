"""A file in the layout of the published checkpoints, with random weights."""

import hashlib

import pytest

from vfnet_tf.checkpoints.pytorch import to_pytorch_state_dict
from vfnet_tf.data.formats.coco_classes import COCO_CLASS_NAMES


def write_official_file(detector, folder, name, is_zip=False):
    """Writes a detector as the official code does; skips the test without PyTorch.

    Args:
        detector: `DenseDetector` of the architecture of `name`.
        folder: `Path`.
        name: str, config of a published model.
        is_zip: bool, which of PyTorch's two formats.

    Returns:
        str, the name of the file, with the first digits of its SHA-256.
    """
    torch = pytest.importorskip("torch", reason="the extra `torch` is not installed")
    state = {k: torch.from_numpy(v) for k, v in to_pytorch_state_dict(detector).items()}
    content = {"meta": {"CLASSES": COCO_CLASS_NAMES}, "state_dict": state}
    path = folder / "file.pth"
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    digits = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    return path.rename(folder / f"{name}_2020-{digits}.pth").name
