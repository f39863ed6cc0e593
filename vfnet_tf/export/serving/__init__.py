"""Model repositories for TensorFlow Serving, and a client."""
