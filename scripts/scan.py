"""The command `vfnet scan` for a clone: `python scripts/scan.py --help`."""

import sys

from vfnet_tf.cli.__main__ import run_command

if __name__ == "__main__":
    sys.exit(run_command("scan"))
