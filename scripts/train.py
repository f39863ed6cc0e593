"""The command `vfnet train` for a clone: `python scripts/train.py --help`."""

import sys

from vfnet_tf.cli.__main__ import run_command

if __name__ == "__main__":
    sys.exit(run_command("train"))
