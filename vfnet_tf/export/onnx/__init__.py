"""ONNX files of detectors."""
