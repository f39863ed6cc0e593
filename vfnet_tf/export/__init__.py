"""Detectors for serving: everything from JPEG bytes to final detections in one file."""

from vfnet_tf.export import saved_model

__all__ = ["saved_model"]
