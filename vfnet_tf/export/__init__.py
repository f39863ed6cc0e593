"""Detectors for serving: SavedModel, ONNX and LiteRT files, TensorFlow Serving.

A module is imported when one of its names is used.
"""

import importlib

_PUBLIC = {
    "export_for_serving": "vfnet_tf.export.serving.model_repository",
    "export_litert": "vfnet_tf.export.litert.exporter",
    "export_onnx": "vfnet_tf.export.onnx.model",
    "export_saved_model": "vfnet_tf.export.saved_model.exporter",
}

__all__ = [*_PUBLIC]


def __getattr__(name):
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'vfnet_tf.export' has no attribute {name!r}")
