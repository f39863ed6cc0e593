"""Who may import what, print, and be named how."""

import ast
import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "vfnet_tf"

#: What runs on every backend, and what may print.
PORTABLE = {
    "__init__",
    "_registration",
    "files",
    "foreign_text",
    "offline",
    "ops",
    "layers",
    "losses",
    "assigners",
    "priors",
    "box_coders",
    "drawing",
    "progress",
    "evaluation",
    "backbones",
    "necks",
    "heads",
    "detectors",
    "reports",
    "config",
    "configs",
}
PRINTING = {"training", "export", "paper", "cli"}

FORBIDDEN_NAME = re.compile(r"(^|_)(utils?|common|misc|helpers?)(_|$)")


def package_modules():
    """Yields (path, unit, dotted name) of every module of the package and configs."""
    for folder, prefix in ((PACKAGE, ()), (ROOT / "configs", ("configs",))):
        for path in sorted(folder.rglob("*.py")):
            parts = (*prefix, *path.relative_to(folder).with_suffix("").parts)
            yield path, parts[0], ".".join(("vfnet_tf", *parts))


def imported_names(tree, module):
    """Yields (dotted name, line, node) of every import of a syntax tree."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, node
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: -node.level]
                base = ".".join([*parents, *([node.module] if node.module else [])])
            for alias in node.names:
                yield f"{base}.{alias.name}", node.lineno, node


def import_time_nodes(tree):
    """Returns the import nodes that run when the module is imported on any backend."""
    found, queue = set(), list(tree.body)
    while queue:
        node = queue.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and "backend" in ast.unparse(node.test):
            continue  # the marked switch of ops/: TensorFlow only where it runs
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found.add(node)
        queue.extend(ast.iter_child_nodes(node))
    return found


@functools.cache
def package_imports():
    """(path, unit, imports) of every module; an import is (name, line, runs at import).

    Read once, and without the trees, which would be a million objects.
    """
    found = []
    for path, unit, module in package_modules():
        tree = ast.parse(path.read_text("utf-8"))
        at_import = import_time_nodes(tree)
        names = [
            (name, line, node in at_import)
            for name, line, node in imported_names(tree, module)
        ]
        found.append((path, unit, names))
    return found


def test_the_floors_are_kept_and_there_is_no_circle(tmp_path):
    """The contracts are in pyproject.toml; imports inside functions count too."""
    command = [
        Path(sys.executable).with_name("lint-imports"),
        "--no-cache",
        "--no-logo",
    ]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "Contracts: 2 kept, 0 broken." in answer.stdout


def test_the_package_does_not_import_what_it_offers_to_others():
    units = {path.stem for path in PACKAGE.iterdir()} | {"configs"}
    wrong = [
        f"{path.name}:{line}: {name}"
        for path, _, names in package_imports()
        for name, line, _ in names
        if name.startswith("vfnet_tf.") and name.split(".")[1] not in units
    ]
    assert not wrong, f"import from the module that has it: {wrong}"


def test_relative_imports_are_resolved_before_they_are_judged():
    tree = ast.parse("from ..heads import vfnet\nfrom . import iou\nimport keras")
    names = [name for name, _, _ in imported_names(tree, "vfnet_tf.layers.scale")]
    assert names == ["vfnet_tf.heads.vfnet", "vfnet_tf.layers.iou", "keras"]


def test_imports_in_functions_and_under_the_backend_switch_do_not_run_at_import():
    source = (
        "import os\n"
        "if keras.backend.backend() == 'tensorflow':\n    import tensorflow\n"
        "if os.name:\n    import sys\n"
        "class A:\n    import json\n    def f(self):\n        import torch\n"
    )
    nodes = import_time_nodes(ast.parse(source))
    assert sorted(node.names[0].name for node in nodes) == ["json", "os", "sys"]


@pytest.mark.parametrize(
    ("library", "homes"),
    [
        ("torch", {"vfnet_tf/checkpoints/pytorch.py"}),
        ("torchvision", set()),
        (
            "safetensors",
            {
                "vfnet_tf/checkpoints/safetensors_file.py",
                "vfnet_tf/checkpoints/imagenet.py",
            },
        ),
        ("huggingface_hub", {"vfnet_tf/checkpoints/imagenet.py"}),
        (
            "pycocotools",
            {"vfnet_tf/data/formats/coco.py", "vfnet_tf/evaluation/coco.py"},
        ),
        ("faster_coco_eval", {"vfnet_tf/evaluation/coco.py"}),
        ("ai_edge_litert", {"vfnet_tf/inference/litert.py"}),
        (
            "onnx",
            {
                "vfnet_tf/export/onnx/graph.py",
                "vfnet_tf/export/onnx/model.py",
                "vfnet_tf/export/onnx/quantization.py",
            },
        ),
        (
            "onnxruntime",
            {"vfnet_tf/inference/onnx.py", "vfnet_tf/export/onnx/quantization.py"},
        ),
        # Where a backend compiles what Keras would run operation by operation, and where
        # its processes meet.
        (
            "jax",
            {
                "vfnet_tf/detectors/execution.py",
                "vfnet_tf/training/loop.py",
                "vfnet_tf/training/preemption.py",
            },
        ),
        ("flask", {"vfnet_tf/cli/demo.py"}),
        ("waitress", {"vfnet_tf/cli/demo.py"}),
        ("werkzeug", set()),
        ("av", {"vfnet_tf/inference/video.py"}),
        ("supervision", {"vfnet_tf/inference/prediction.py"}),
        ("grpc", {"vfnet_tf/export/serving/connections.py"}),
        (
            "requests",
            {
                "vfnet_tf/checkpoints/published.py",
                "vfnet_tf/export/serving/connections.py",
            },
        ),
        ("urllib3", {"vfnet_tf/export/serving/connections.py"}),
        (
            "tensorflow_serving",
            {
                "vfnet_tf/export/serving/connections.py",
                "vfnet_tf/export/serving/model_repository.py",
            },
        ),
        ("tensorflow_datasets", {"vfnet_tf/data/formats/tfds.py"}),
        ("rich", {"vfnet_tf/progress.py"}),
        ("yaml", {"vfnet_tf/data/formats/yolo.py"}),
        ("keras_hub", {"vfnet_tf/backbones/kerashub.py"}),
        ("tensorflow_addons", set()),
        ("keras_cv", set()),
        ("cv2", set()),
    ],
)
def test_a_library_is_imported_only_in_its_home(library, homes):
    users = set()
    for path, _, names in package_imports():
        for name, _, _ in names:
            if name.split(".")[0] == library:
                users.add(path.relative_to(ROOT).as_posix())
    assert users <= homes, f"{library} does not belong in {sorted(users - homes)}"


def test_tensorflow_is_not_imported_at_the_top_of_portable_modules():
    eager = []
    for path, unit, names in package_imports():
        portable = unit in PORTABLE
        without_tensorflow = {
            "vfnet_tf/data/__init__.py",
            "vfnet_tf/data/normalization.py",
            "vfnet_tf/data/numpy_images.py",
            "vfnet_tf/data/images/containers.py",
            "vfnet_tf/data/images/corruption.py",
            "vfnet_tf/data/images/inspect.py",
            "vfnet_tf/data/images/numpy_decode.py",
            "vfnet_tf/data/images/reasons.py",
        }
        place = path.relative_to(ROOT).as_posix()
        if not portable and place not in without_tensorflow:
            continue
        for name, line, runs_at_import in names:
            if name.split(".")[0] == "tensorflow" and runs_at_import:
                eager.append(f"{place}:{line}")
    assert not eager, f"import tensorflow inside the function that needs it: {eager}"


def test_scripts_only_call_the_command_line_modules():
    wrong = []
    for path in sorted((ROOT / "scripts").glob("*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        for name, line, _ in imported_names(tree, f"scripts.{path.stem}"):
            parts = name.split(".")
            if parts[0] == "vfnet_tf" and parts[1:2] != ["cli"]:
                wrong.append(f"{path.name}:{line}: {name}")
    assert not wrong, f"scripts call vfnet_tf.cli only: {wrong}"


def test_no_folder_or_file_has_a_name_that_says_nothing():
    tops = ("vfnet_tf", "configs", "scripts", "colab", "tests")
    paths = [path for top in tops for path in (ROOT / top).rglob("*")]
    wrong = [
        path.relative_to(ROOT).as_posix()
        for path in paths
        if "__pycache__" not in path.parts and FORBIDDEN_NAME.search(path.stem)
    ]
    assert not wrong, f"name these for what they do: {wrong}"


def test_the_package_has_no_assert_and_prints_nothing_below_the_commands():
    wrong = []
    for path, unit, _ in package_modules():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            is_print = isinstance(node, ast.Call) and ast.unparse(node.func) == "print"
            if isinstance(node, ast.Assert):
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}: assert")
            elif is_print and unit not in PRINTING:
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}: print")
    assert not wrong, "\n".join(wrong)


def test_setup_requires_what_the_package_imports():
    distributions = {"PIL": "pillow"}
    optional = {
        "torch",
        "faster_coco_eval",
        "tensorflow_datasets",
        "tensorboard",
        "yaml",
    }
    optional |= {"safetensors", "huggingface_hub", "jax", "onnx", "onnxruntime"}
    optional |= {"ai_edge_litert", "tensorflow_serving", "grpc", "flask", "waitress"}
    optional |= {"keras_hub"}
    optional |= {"av", "supervision", "urllib3"}
    optional |= {"google"}  # protobuf, which TensorFlow requires
    imported = set()
    for _, _, names in package_imports():
        imported |= {name.split(".")[0] for name, _, _ in names}
    imported -= set(sys.stdlib_module_names) | {"vfnet_tf"} | optional
    required = re.findall(
        r'^    "([a-z0-9_]+)>=', (ROOT / "setup.py").read_text(), re.M
    )
    missing = {distributions.get(name, name) for name in imported} - set(required)
    assert not missing, f"add to REQUIREMENTS of setup.py: {sorted(missing)}"
    # Nine: rich is there in any case, because Keras requires it.
    assert len(required) <= 10, "what not everybody needs is an extra"


def print_in_fresh_process(code, **environment):
    """What Python code prints there."""
    answer = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.strip()


@pytest.mark.backend
def test_importing_the_package_does_not_import_another_backend():
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    if backend == "tensorflow":
        backend = "jax"
    code = (
        "import sys, vfnet_tf\n"
        "print([m for m in ('keras', 'tensorflow', 'pycocotools', 'matplotlib')"
        " if m in sys.modules])"
    )
    assert print_in_fresh_process(code, KERAS_BACKEND=backend) == "[]"


def test_beside_keras_the_package_imports_no_heavy_library():
    code = (
        "import sys, keras\n"
        "before = set(sys.modules)\n"
        "import vfnet_tf\n"
        "late = set(sys.modules) - before\n"
        "print(sorted(m for m in late if '.' not in m and m not in"
        " sys.stdlib_module_names and not m.startswith('_')))"
    )
    for backend in ("tensorflow", "jax"):
        found = print_in_fresh_process(code, KERAS_BACKEND=backend)
        assert found == "['vfnet_tf']", found


@pytest.mark.parametrize(
    "first",
    [
        "import keras, vfnet_tf",
        "import vfnet_tf, keras",
        "from vfnet_tf.detectors.vfnet import VFNet; import keras, vfnet_tf",
        "import vfnet_tf.ops.boxes, keras",
    ],
)
def test_every_class_that_a_file_may_name_is_registered_beside_keras(first):
    code = (
        f"{first}\n"
        "import importlib, pkgutil\n"
        "known = set(keras.saving.get_custom_objects())\n"
        "for module in pkgutil.walk_packages(vfnet_tf.__path__, 'vfnet_tf.'):\n"
        "    if not module.name.endswith('__main__'):\n"
        "        importlib.import_module(module.name)\n"
        "late = set(keras.saving.get_custom_objects()) - known\n"
        "print(sorted(late), 'vfnet_tf>VFNet' in known)"
    )
    assert print_in_fresh_process(code) == "[] True"


@pytest.mark.parametrize("path", list(PACKAGE.rglob("*.py")), ids=str)
def test_graphs_are_small_and_traced_as_they_are(path):
    """`tf.function` says `autograph=False`; sizes come from `sizes_of`.

    There is no Python flow to convert here, and AutoGraph takes its time; of each size
    `keras.ops.shape` makes four operations.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    for call in calls:
        name = ast.unparse(call.func)
        if name == "tf.function":
            assert "autograph=False" in map(ast.unparse, call.keywords), call.lineno
        assert name not in {"ops.shape", "keras.ops.shape"} or path.stem == "shapes"
    decorators = [
        ast.unparse(decorator)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        for decorator in node.decorator_list
    ]
    assert "tf.function" not in decorators
