"""The command `vfnet env` for a clone: `python scripts/env.py --help`."""

import sys

from vfnet_tf.cli.__main__ import run_command

if __name__ == "__main__":
    sys.exit(run_command("env"))
