"""SavedModels that take the bytes of image files, for TensorFlow Serving."""
