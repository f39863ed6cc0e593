"""The command `vfnet swa` for a clone: `python scripts/swa.py --help`."""

import sys

from vfnet_tf.cli.__main__ import run_command

if __name__ == "__main__":
    sys.exit(run_command("swa"))
