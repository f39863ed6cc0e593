"""Annotation formats: each is read, or turned into a COCO file that is read."""
