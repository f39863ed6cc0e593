"""Detections for images: files, folders, videos, datasets, arrays."""
