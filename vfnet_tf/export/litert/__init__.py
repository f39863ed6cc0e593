"""LiteRT files of detectors."""
