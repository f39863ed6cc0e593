import os

# Before anything imports TensorFlow, whose start-up notes would bury a command's own
# lines. Its errors still show, and a value set outside wins.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
