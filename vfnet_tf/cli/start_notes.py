"""A process that copies its stdin to stderr, but for TensorFlow's notes on its start.

TensorFlow writes these lines before it looks at `TF_CPP_MIN_LOG_LEVEL`. It is a process
of its own since TensorFlow may end the one that imports it, and says why. Run as a file.
"""

import re
import signal
import sys

#: The end of what is read, after an import that went well.
DONE = "\n-- TensorFlow is imported --\n"

_NOTE = re.compile(
    r"(?P<severity>[IWE])\d{4} [\d:.]+ +\d+ \S+:\d+\] "
    r"|WARNING: All log messages before absl::InitializeLog"
)
_OF_DEVICES = re.compile(r"cuda|gpu|rocm", re.IGNORECASE)


def news(text, level, has_device):
    """What remains to be shown of the stderr of an import.

    Args:
        text: str, with `DONE` at its end if the import went well.
        level: int, `TF_CPP_MIN_LOG_LEVEL`: 1 leaves out notes, 2 warnings too, 3 also
            errors.
        has_device: bool, whether there is a GPU; then all lines about GPUs stay.

    Returns:
        str, the text without notes; all of it if the import failed.
    """
    if not text.endswith(DONE):
        return text
    left_out = {None, *"IWE"[:level]}

    def is_news(line):
        note = _NOTE.match(line)
        return (
            note is None
            or note["severity"] not in left_out
            or (has_device and _OF_DEVICES.search(line) is not None)
        )

    lines = text.removesuffix(DONE).splitlines(keepends=True)
    return "".join(filter(is_news, lines))


if __name__ == "__main__":
    # Ctrl-C is for the command, which ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    text = sys.stdin.buffer.read().decode(errors="replace")
    sys.stderr.reconfigure(errors="backslashreplace")
    sys.stderr.write(news(text, int(sys.argv[1]), sys.argv[2] == "True"))
