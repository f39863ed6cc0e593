import os

# Must come before the import of TensorFlow. Hides its start-up notes, not its errors.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
