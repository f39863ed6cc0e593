"""`vfnet COMMAND ...`: the console command; imports the module of COMMAND alone.

`python -m vfnet_tf.cli COMMAND ...` and `scripts/COMMAND.py ...` are the same.
"""

import contextlib
import dataclasses
import importlib
import pathlib
import sys
import traceback
import warnings
from typing import Annotated

import vfnet_tf
from vfnet_tf import processor
from vfnet_tf.cli.process import hide_start_notes
from vfnet_tf.files import refuse_url
from vfnet_tf.foreign_text import terminal_text

#: command -> (module of `OPTIONS` and `run(options)`, what it does)
COMMANDS = {
    "scan": ("vfnet_tf.cli.scan", "check a dataset: is it safe to train on?"),
    "train": ("vfnet_tf.cli.train", "train a detector, leave a run directory"),
    "study": ("vfnet_tf.cli.study", "train the rows of one of the paper's tables"),
    "swa": ("vfnet_tf.cli.swa", "average the weights of a run, or train on for it"),
    "evaluate": ("vfnet_tf.cli.evaluate", "COCO metrics of a detector or of results"),
    "compare": ("vfnet_tf.cli.compare", "settings, metrics and curves of several runs"),
    "oracle": ("vfnet_tf.cli.oracle", "what limits a detector: Table 1 of the paper"),
    "predict": ("vfnet_tf.cli.predict", "detect objects in files, folders and URLs"),
    "export": ("vfnet_tf.cli.export", "write a SavedModel: image bytes to detections"),
    "demo": ("vfnet_tf.cli.demo", "open a page: drop an image, see the boxes"),
    "convert": ("vfnet_tf.cli.convert", "official PyTorch checkpoints in, and out"),
    "convert-data": (
        "vfnet_tf.cli.convert_data",
        "COCO, Pascal VOC, YOLO, CSV, TFRecord and TFDS data to another format",
    ),
    "configs": ("vfnet_tf.cli.configs", "list the configs, or print one's model card"),
    "benchmark": (
        "vfnet_tf.cli.benchmark",
        "latency and memory of an exported detector",
    ),
    "env": (
        "vfnet_tf.cli.env",
        "versions, processor, devices: for the report of a fault",
    ),
}

#: Commands whose weights change, and commands whose weights stay; others compute little.
TRAINING = {"train", "study", "swa"}
DETECTING = {"predict", "evaluate", "oracle", "export", "demo", "benchmark"}

#: Errors that a user can cause. ImportError: an extra is not installed;
#: FloatingPointError: a training diverged.
USER_ERRORS = (ValueError, OSError, ImportError, FloatingPointError)


def usage():
    """The text of `vfnet --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: vfnet COMMAND [OPTIONS]",
            "",
            "VarifocalNet for Keras 3. Commands:",
            *lines,
            "",
            "vfnet COMMAND --help lists the options, vfnet --version says the version.",
        ]
    )


def main(arguments=None):
    """Entry point of the console command `vfnet`.

    Args:
        arguments: list of str after the program's name; None takes `sys.argv`'s.

    Returns:
        The exit status: 0, 2 for a mistake of the user, 130 when interrupted.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"vfnet_tf {vfnet_tf.__version__}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        print(
            f"error: the command must be one of {', '.join(COMMANDS)}. "
            f"Received: {name}",
            file=sys.stderr,
        )
        return 2
    return run_command(name, rest, prog=f"vfnet {name}")


def run_command(name, arguments=None, prog=None):
    """Runs one command; an error of the user is one message without a stack trace.

    Args:
        name: key of `COMMANDS`.
        arguments: list of str; None takes `sys.argv`'s.
        prog: str, the name in the help text; None keeps `sys.argv[0]`.

    Returns:
        The exit status, see `main`.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    program = sys.argv[0]
    if hasattr(sys.stdout, "reconfigure"):
        # A file name that the terminal's encoding lacks must not stop a message.
        sys.stdout.reconfigure(errors="backslashreplace")
    hide_start_notes()
    try:
        if prog is not None:
            sys.argv[0] = prog
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            # Pillow's about damaged tags of some image, which it does not name. The tag
            # that counts, the orientation, is read by `vfnet_tf.data.images`.
            warnings.filterwarnings("ignore", module=r"PIL\.TiffImagePlugin")
            module = importlib.import_module(COMMANDS[name][0])
            options = _parse(module.OPTIONS, arguments)
            _refuse_urls(options, arguments)
            if name in TRAINING:
                processor.speed_up_training()
            elif name in DETECTING and "tensorflow" not in sys.modules:
                processor.speed_up_inference()
            with contextlib.redirect_stdout(_PlainStream(sys.stdout)):
                return module.run(options) or 0
    except USER_ERRORS as error:
        if "--debug" in arguments:
            traceback.print_exc()
        print(f"error: {terminal_text(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    finally:
        sys.argv[0] = program


class _PlainStream:
    """A text stream through which names of files and classes cannot steer a terminal."""

    def __init__(self, stream):
        self._stream = stream

    def write(self, text):
        return self._stream.write(terminal_text(text))

    def __getattr__(self, name):
        return getattr(self._stream, name)


def _parse(options, arguments):
    """Fills the dataclass `options`, with `--debug` added, from a list of str."""
    import tyro

    debug = Annotated[bool, tyro.conf.arg(help="show the stack trace of an error")]
    field = dataclasses.field(default=False, kw_only=True)
    options = dataclasses.make_dataclass(
        options.__name__,
        [("debug", debug, field)],
        bases=(options,),
        namespace={"__doc__": options.__doc__},
        frozen=True,
    )
    return tyro.cli(options, args=arguments)


def _refuse_urls(options, arguments):
    """Refuses a URL where an option takes a path of this machine."""
    texts = [argument.rpartition("=")[2] for argument in arguments]
    # `Path` has only one of the slashes left.
    urls = {pathlib.Path(text): text for text in texts if "://" in text}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        for path in value if isinstance(value, tuple) else (value,):
            if isinstance(path, pathlib.Path) and path in urls:
                refuse_url(f"--{field.name.replace('_', '-')}", urls[path])


def _show_warning(message, category, filename, lineno, file=None, line=None):
    """Prints one line without the place in the code."""
    print(f"warning: {terminal_text(message)}", file=file or sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
