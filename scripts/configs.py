"""The command `vfnet configs` for a clone: `python scripts/configs.py --help`."""

import sys

from vfnet_tf.cli.__main__ import run_command

if __name__ == "__main__":
    sys.exit(run_command("configs"))
