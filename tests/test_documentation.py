"""Checks of pages and docstrings: Python runs, commands parse, names and files exist.

Blocks of Python run page by page, in a folder with `runs/mine` and `street.jpg`. A block
that cannot run here follows a line `<!-- not run: the reason -->`.
"""

import ast
import contextlib
import doctest
import importlib
import io
import re
import shlex
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import vfnet_tf
from tests import tiny_run
from vfnet_tf.backbones import ResNet
from vfnet_tf.cli.__main__ import COMMANDS, main

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(ROOT.glob("docs/**/*.md")),
]
FENCE = re.compile(
    r"^(<!-- not run: .+ -->\n)?```(\w+)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL
)


def blocks(path, language):
    """Yields (number of the line above, text, whether it runs) of a page's blocks."""
    page = path.read_text("utf-8")
    for match in FENCE.finditer(page):
        if match[2] == language:
            yield page.count("\n", 0, match.start(3)), match[3], match[1] is None


def runnable_pages():
    return [
        pytest.param(path, id=path.relative_to(ROOT).as_posix())
        for path in PAGES
        if any(runs for *_, runs in blocks(path, "python"))
    ]


def modules_with_examples():
    for path in sorted((ROOT / "vfnet_tf").glob("**/*.py")):
        if re.search(r"^ *>>> (?!.*SKIP)", path.read_text("utf-8"), re.MULTILINE):
            yield ".".join(path.relative_to(ROOT).with_suffix("").parts)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("documentation")
    tiny_run.write_run(folder / "runs" / "mine")
    Image.fromarray(tiny_run.picture(1, 120, 150)).save(folder / "street.jpg")
    return folder


@pytest.fixture
def workplace(folder, monkeypatch):
    """The folder where examples run, without tracing graphs, which is slow."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("VFNET_TF_CACHE", str(folder / "cache"))
    tf.config.run_functions_eagerly(True)
    yield folder
    tf.config.run_functions_eagerly(False)


#: Pages whose Python uses the names of `reader_has`.
FOR_READERS_WITH_DATA = {"README.md", "how_vfnet_works.md", "interop.md", "python.md"}


def reader_has():
    """Batches, images and a model that some examples expect from their reader."""
    batch = {
        "images": np.zeros((1, 64, 96, 3), "float32"),
        "boxes": np.array([[[4, 6, 40, 50]]], "float32"),
        "labels": np.array([[1]], "int32"),
        "image_size": np.array([[64, 96]], "float32"),
    }
    inputs = keras.Input((None, None, 3))
    c2 = keras.layers.Conv2D(4, 4, 4, name="pool2_pool")(inputs)
    c3 = keras.layers.Conv2D(4, 2, 2, name="pool3_conv")(c2)
    c4 = keras.layers.Conv2D(4, 2, 2, name="pool4_conv")(c3)
    c5 = keras.layers.Conv2D(3, 2, 2, name="relu")(c4)
    return {
        "batches": tf.data.Dataset.from_tensors(batch),
        "images": batch["images"],
        "model": keras.Model(inputs, keras.layers.Reshape((-1, 3))(c5)),
        "features": np.ones((2, 32, 32, 3), "float32"),
        "targets": np.array([[[0.8, 0, 0]], [[0, 0, 0]]], "float32"),
        "weights": np.ones((2, 1), "float32"),
    }


@pytest.mark.parametrize("page", runnable_pages())
def test_the_python_of_a_page_runs(page, workplace, monkeypatch):
    # The pages have 50 layers; 18 are faster, with the same output.
    monkeypatch.setattr(vfnet_tf, "ResNet", lambda depth: ResNet(depth=18))
    names = reader_has() if page.name in FOR_READERS_WITH_DATA else {}
    ran = 0
    for line, text, runs in blocks(page, "python"):
        if runs:
            # The lines of a traceback are those of the page.
            exec(compile("\n" * line + text, str(page), "exec"), names)
            ran += 1
    assert ran


@pytest.mark.parametrize("name", list(modules_with_examples()))
def test_examples_in_docstrings_give_what_they_show(name, workplace):
    module = importlib.import_module(name)
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    result = doctest.testmod(module, optionflags=options)
    assert result.attempted and not result.failed


def test_examples_in_docstrings_are_all_tried():
    shown = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "vfnet_tf").glob("**/*.py")
        if "```python" in path.read_text("utf-8")
    ]
    assert not shown, "write examples of docstrings with >>>, so that they are run"


def shell_commands(text):
    """The commands of a shell script as lists of words.

    Values that it sets (`O="--config ..."`) replace `$O`; loops, pipes and redirections
    end a command.
    """
    variables, found = {}, []
    for line in re.sub(r" *\\\n *", " ", text).splitlines():
        line = re.sub(r"\$(\w+)", lambda name: variables.get(name[1], name[0]), line)
        if not re.search(r"^\w+=|\bvfnet |scripts/\w+\.py", line):
            continue
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words = []
        for word in [*lexer, ";"]:
            if set(word) <= set("();<>|&"):
                found.append(words)
                words = []
            elif not words and re.match(r"\w+=", word):
                name, _, value = word.partition("=")
                variables[name] = value
            else:
                words.append(word)
    return [words for words in found if words]


def as_command(words):
    """`[command, arguments...]` of a call of `vfnet` or a script; else None."""
    if words[0] == "vfnet":
        words = words[1:]
    elif len(words) > 1 and re.fullmatch(r"scripts/\w+\.py", words[1]):
        words = [Path(words[1]).stem, *words[2:]]
    else:
        return None
    return [word for word in words if word != "..."]


def complaint(command):
    """The error of a command's option parser; None for a valid command."""
    name, *arguments = command
    if name not in COMMANDS:
        return None if name in ("--help", "--version") else f"no command {name}"
    if "--help" in arguments:
        return None
    module = importlib.import_module(COMMANDS[name][0])
    parsed, said = [], io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "run", parsed.append)
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            try:
                main([name, *arguments])
            except SystemExit:
                return said.getvalue()
    return None if parsed else "it did not reach `run`"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_commands_of_a_page_are_understood(page):
    wrong = []
    for line, text, _ in blocks(page, "bash"):
        for words in shell_commands(text):
            command = as_command(words)
            problem = command and complaint(command)
            if problem:
                wrong.append(f"{page.name}, block below line {line}: {words} {problem}")
    prose = FENCE.sub("", page.read_text("utf-8"))
    for span in re.findall(r"`([^`\n]*\b(?:vfnet|scripts/\w+\.py)\s[^`\n]+)`", prose):
        for words in shell_commands(span):
            command = as_command(words)
            # Words that only name a command, and those without what it works on.
            if command is None or (len(command) == 1 and command[0] in COMMANDS):
                continue
            if complaint(command) and complaint([command[0], "RUN_DIR", *command[1:]]):
                wrong.append(f"{page.name}: `{span}` {complaint(command)}")
    assert not wrong, "\n".join(wrong)


def test_shell_is_read_as_a_shell_does():
    text = (
        'O="--config a --epochs 2"\nTF_CONFIG=\'{"x": 1}\' vfnet train $O --data d &\n'
        "vfnet swa runs/x \\\n    --epochs 3   # more\n"
        "ls; python scripts/train.py --out y > z\n"
    )
    assert [as_command(words) for words in shell_commands(text)] == [
        ["train", "--config", "a", "--epochs", "2", "--data", "d"],
        ["swa", "runs/x", "--epochs", "3"],
        None,
        ["train", "--out", "y"],
        None,
    ]


@pytest.mark.parametrize(
    ("command", "is_good"),
    [
        (["train", "--data", "d", "--epochs", "2"], True),
        (["train", "--epoch", "2"], False),
        (["train", "--epochs", "two"], False),
        (["export"], False),
        (["fly"], False),
    ],
)
def test_a_stale_option_is_found(command, is_good):
    assert (complaint(command) is None) == is_good


def known_options():
    """Every option that any command's help shows."""
    found = set()
    for name in COMMANDS:
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            main([name, "--help"])
        options = re.findall(r"--[a-z][a-z0-9-]+", said.getvalue())
        assert options, f"{name} shows no options"
        found.update(options)
    return found


#: Options of other programs that the pages name, benchmarks/speed.py among them.
FOREIGN_OPTIONS = {
    "--all",
    "--enable_batching",
    "--batching_parameters_file",
    "--dist",
    "--no-deps",
    "--only",
    "--xla_force_host_platform_device_count",
}


def test_options_that_pages_name_exist():
    known = known_options() | FOREIGN_OPTIONS
    unknown = [
        f"{page.relative_to(ROOT)}: {option}"
        for page in PAGES
        for span in re.findall(r"`([^`\n]+)`", page.read_text("utf-8"))
        for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", span)
        if option.rstrip("-") not in known
    ]
    assert not unknown, "\n".join(unknown)


def test_extras_and_targets_that_pages_name_exist():
    tree = ast.parse((ROOT / "setup.py").read_text("utf-8"))
    extras = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "EXTRAS"
    )
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.search(r"\.PHONY: (.*)", makefile)[1].split())
    for page in PAGES:
        text = page.read_text("utf-8")
        named = re.findall(r"(?:vfnet_tf|\.)\[([a-z-]+)\]", text)
        named += re.findall(r"\bextra `([a-z-]+)`", text)
        assert set(named) <= {*extras, "dev"}, page
        assert set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE)) <= targets


def test_files_that_pages_link_to_exist():
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in PAGES
        for target in re.findall(r"\]\(([^)\s#]+)[^)]*\)", page.read_text("utf-8"))
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert not broken, "\n".join(broken)


def test_the_reference_has_every_public_name():
    pages = "".join(
        path.read_text("utf-8") for path in ROOT.glob("docs/reference/*.md")
    )
    documented = set(re.findall(r"automodule:: vfnet_tf\.([\w.]+)", pages))
    for name, module in vfnet_tf._PUBLIC.items():
        assert f"`{name} <{module}.{name}>`" in pages, name
        assert module.removeprefix("vfnet_tf.") in documented, module
    assert set(vfnet_tf._MODULES) <= {*documented, "export"}
