"""Import and export of the official PyTorch checkpoints, of mmdetection 2 and 3."""

import contextlib
import dataclasses
import json
import os
import pathlib
import warnings
from collections.abc import Mapping

import numpy as np

from vfnet_tf.checkpoints import architecture
from vfnet_tf.checkpoints.names import classifier_name, is_ignorable, official_variables
from vfnet_tf.checkpoints.safetensors_file import read_safetensors, write_safetensors
from vfnet_tf.checkpoints.tensors import (
    assign_tensors,
    match_tensors,
    pytorch_shape,
    raise_problems,
    to_keras_layout,
    to_numpy,
    to_pytorch_layout,
)
from vfnet_tf.checkpoints.torch_file import read_torch_file
from vfnet_tf.files import replacing

__all__ = [
    "Checkpoint",
    "load_pytorch_checkpoint",
    "read_checkpoint",
    "to_keras_layout",
    "to_pytorch_state_dict",
    "write_checkpoint",
]

#: Endings of checkpoint files; all but the last are PyTorch's.
SUFFIXES = (".pth", ".pt", ".bin", ".tar", ".safetensors")
#: The convolution of each head whose shape depends on the number of classes.
CLASSIFIERS = tuple(
    f"bbox_head.{name}."
    for name in ("vfnet_cls", "atss_cls", "retina_cls", "conv_cls", "reppoints_cls_out")
)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The content of a file or a mapping.

    Attributes:
        tensors: dict from name, without the prefix of DataParallel, to array in
            PyTorch's layout; without tensors that no variable needs.
        class_names: one per label; None if unknown.
        source: str, its name in error messages.
    """

    tensors: Mapping
    class_names: tuple | None = None
    source: str = "The mapping"

    @property
    def num_classes(self):
        """K; None if the checkpoint has no classifier of a known detector."""
        found = [name for name in CLASSIFIERS if f"{name}bias" in self.tensors]
        shape = np.shape(self.tensors[f"{found[0]}bias"]) if found else ()
        if len(shape) != 1:
            return None
        # RetinaNet has K scores and four box numbers for each anchor of a cell.
        sides = np.shape(self.tensors.get("bbox_head.retina_reg.bias"))
        return shape[0] * 4 // sides[0] if len(sides) == 1 else shape[0]


def load_pytorch_checkpoint(
    detector, checkpoint, *, skip_classifier=None, use_ema_fields=False
):
    """Loads a checkpoint of the official implementation, strictly.

    The names are those of mmdetection 2 (the official repository) and 3, which are the
    same, optionally with the prefix `module.`. Optimizer, `meta`, logs and averages
    beside the weights are left out.

    Args:
        detector: a `VFNet`, `FCOS`, `RetinaNet`, `FoveaBox` or `RepPoints` of the
            checkpoint's architecture.
        checkpoint: path of a `.pth` file (read without PyTorch, see `torch_file`) or of
            a `.safetensors` file; or a mapping from official names to arrays in PyTorch's
            layout, floats of 16 to 64 bits, at its top or under the key `"state_dict"`;
            or a `Checkpoint`.
        skip_classifier: True loads all but the classifier (`bbox_head.vfnet_cls`), which
            keeps its values. None does so, with a warning, if the checkpoint has another
            number of classes; False makes that an error.
        use_ema_fields: bool, whether to take the fields of the averaging hook (`ema_*`
            buffers in mmdetection 2, `ema_state_dict` in 3). Both frameworks swap on
            saving: the plain names hold the averages, these fields the raw weights.

    Returns:
        The detector.

    Raises:
        ValueError: if the file cannot be read safely, or if a tensor is missing, left
            over, misshapen or no float; all are listed, and no weight is changed.
        ImportError: for a `.safetensors` file without the package safetensors.
    """
    checkpoint = read_checkpoint(checkpoint, use_ema_fields=use_ema_fields)
    variables = official_variables(detector)
    tensors = dict(checkpoint.tensors)
    ours = {name: pytorch_shape(variable) for name, variable in variables.items()}
    num_classes = detector.num_classes
    classifier = classifier_name(detector)
    if skip_classifier is None and checkpoint.num_classes not in (None, num_classes):
        skip_classifier = _differs_by_classes(tensors, ours, classifier)
        if skip_classifier:
            warnings.warn(
                f"{checkpoint.source} is of {checkpoint.num_classes} classes, the "
                f"detector of {num_classes}: all is loaded but the classifier "
                f"({classifier}weight, {classifier}bias), which stays as it was",
                stacklevel=2,
            )
    if skip_classifier:
        for named in (variables, tensors):
            for name in [n for n in named if n.startswith(classifier)]:
                del named[name]
    values, problems = match_tensors(variables, tensors)
    raise_problems(
        problems,
        f"{checkpoint.source} does not fit the detector",
        _hint(tensors, ours, len(problems)) if problems else None,
    )
    assign_tensors(variables, values)
    return detector


def _differs_by_classes(tensors, ours, classifier):
    """Whether the classifiers differ in their number of outputs alone."""
    names = [name for name in ours if name.startswith(classifier)]
    return all(
        name in tensors and np.shape(tensors[name])[1:] == ours[name][1:]
        for name in names
    )


def _hint(tensors, ours, num_problems):
    """The architecture of the checkpoint, if it is not that of the detector."""
    theirs = {name: tuple(np.shape(tensor)) for name, tensor in tensors.items()}
    found, expected = architecture.describe(theirs), architecture.describe(ours)
    if found is None or found == expected:
        if 2 * num_problems > len(ours) + len(theirs):
            return "It looks like a checkpoint of something else than this detector."
        return None
    text = (
        "It looks like a checkpoint of another detector or config: "
        f"{found}; the detector is {expected}."
    )
    configs = architecture.matching_configs(theirs)
    return f"{text} Configs of the former: {', '.join(configs)}" if configs else text


def to_pytorch_state_dict(detector):
    """The weights of a detector by their official names.

    Args:
        detector: one that `load_pytorch_checkpoint` takes, with a `ResNet` or
            `Res2Net` backbone.

    Returns:
        dict from name to array in PyTorch's layout, float32, in the order of the
        layers, with an int64 zero for each batch norm's `num_batches_tracked`, which
        `load_state_dict` needs.

    Raises:
        ValueError: if some variables have no official name (another backbone).
    """
    variables = official_variables(detector)
    named = {id(variable) for variable in variables.values()}
    nameless = [v.path for v in detector.weights if id(v) not in named]
    if nameless:
        raise ValueError(
            "`detector` must have official names for all its variables; a Keras model "
            f"as backbone has none. Received: {len(nameless)} without, e.g. "
            f"{nameless[0]}"
        )
    state = {}
    for name, variable in variables.items():
        array = to_pytorch_layout(to_numpy(variable)).astype("float32")
        state[name] = np.array(array, order="C")
        if name.endswith(".running_var"):
            counter = f"{name.removesuffix('running_var')}num_batches_tracked"
            state[counter] = np.array(0, "int64")
    return state


def write_checkpoint(path, state, class_names=()):
    """Writes a state dict to a file, which appears whole or not at all.

    Args:
        path: ending in `.safetensors`, or in `.pth` for `torch.save` of `state_dict`
            and `meta`, whose `CLASSES` are the names.
        state: dict from name to array, see `to_pytorch_state_dict`.
        class_names: one per label, or none.

    Raises:
        ValueError: if the ending is another one.
        ImportError: if the package that writes the format is not installed.
    """
    path = pathlib.Path(path)
    if path.suffix == ".safetensors":
        # The notes of such a file are strings.
        notes = {"classes": json.dumps(list(class_names))} if class_names else None
        write_safetensors(path, state, notes)
        return
    if path.suffix not in SUFFIXES:
        raise ValueError(
            f"`path` must end in .pth or .safetensors. Received: path={path}"
        )
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            "Writing a .pth file needs PyTorch: pip install 'vfnet_tf[torch]'. "
            "A .safetensors file does without. "
            f"Received: path={path}"
        ) from error
    tensors = {name: torch.from_numpy(array) for name, array in state.items()}
    meta = {"CLASSES": tuple(class_names)} if class_names else {}
    with replacing(path) as temporary:
        torch.save({"meta": meta, "state_dict": tensors}, temporary)


def read_checkpoint(checkpoint, *, use_ema_fields=False):
    """Reads the tensors of a checkpoint.

    Args:
        checkpoint: path or mapping, see `load_pytorch_checkpoint`, of a detector or a
            backbone. A `Checkpoint` is returned as it is.
        use_ema_fields: see `load_pytorch_checkpoint`.

    Returns:
        `Checkpoint`.

    Raises:
        ValueError: if it is no checkpoint, or a file that is damaged or that needs
            pickle to run code.
        ImportError: for a `.safetensors` file without the package safetensors.
    """
    if isinstance(checkpoint, Checkpoint):
        return checkpoint
    source, notes = "The mapping", {}
    if isinstance(checkpoint, str | os.PathLike):
        path = pathlib.Path(checkpoint).expanduser()
        source = str(path)
        if not path.is_file():
            raise ValueError(
                f"`checkpoint` must be an existing file. Received: checkpoint={path}"
            )
        if path.suffix == ".safetensors":
            checkpoint, notes = read_safetensors(path)
        else:
            checkpoint = read_torch_file(path)
    if not isinstance(checkpoint, Mapping):
        raise ValueError(
            "`checkpoint` must be a path or a mapping of names to arrays. "
            f"Received: {type(checkpoint).__name__}"
            + ("" if source == "The mapping" else f" in {source}")
        )
    tensors = _state_dict(checkpoint, source)
    averaging = {n: t for n, t in tensors.items() if _is_ema_buffer(n)}
    tensors = {
        name: tensor
        for name, tensor in tensors.items()
        if not _is_ema_buffer(name)
        and not is_ignorable(name)
        # mmdetection 3 may keep the images' mean and deviation there.
        and not name.startswith("data_preprocessor.")
    }
    if use_ema_fields:
        tensors.update(_ema_fields(checkpoint, averaging, tensors, source))
    return Checkpoint(tensors, _class_names(checkpoint.get("meta"), notes), source)


def _state_dict(checkpoint, source):
    """The names and tensors of a checkpoint, without the prefix of DataParallel."""
    for key in ("state_dict", "model"):
        if isinstance(checkpoint.get(key), Mapping):
            checkpoint = checkpoint[key]
            break
    tensors = {}
    for name, tensor in checkpoint.items():
        is_array = hasattr(tensor, "shape") and hasattr(tensor, "dtype")
        if not isinstance(name, str) or not is_array:
            raise ValueError(
                "A checkpoint must map names to arrays, at its top or under the key "
                f"'state_dict'. Received: {source} with {name!r}: "
                f"{type(tensor).__name__}"
            )
        tensors[name] = tensor
    if not tensors:
        raise ValueError(f"A checkpoint must hold tensors. Received: {source} has none")
    if not all(name.startswith("module.") for name in tensors):
        return tensors
    return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}


def _is_ema_buffer(name):
    """Buffers have names without a dot: `ema_backbone_conv1_weight`."""
    return name.startswith("ema_") and "." not in name


def _ema_fields(checkpoint, averaging, tensors, source):
    """The tensors of the averaging hook by the plain names."""
    fields = checkpoint.get("ema_state_dict")
    if isinstance(fields, Mapping):
        found = {name.removeprefix("module."): t for name, t in fields.items()}
    else:
        plain = {f"ema_{name.replace('.', '_')}": name for name in tensors}
        found = {plain[n]: t for n, t in averaging.items() if n in plain}
    found = {name: t for name, t in found.items() if name in tensors}
    if not found:
        raise ValueError(
            "`use_ema_fields` needs a checkpoint with such fields. "
            f"Received: {source}, which has none"
        )
    return found


def _class_names(meta, notes):
    """The class names in `meta` (mmdetection 2 or 3) or in the notes of a file, or None."""
    meta = meta if isinstance(meta, Mapping) else {}
    of_dataset = meta.get("dataset_meta")
    of_dataset = of_dataset if isinstance(of_dataset, Mapping) else {}
    candidates = [meta.get("CLASSES")]
    candidates += [of_dataset.get(key) for key in ("classes", "CLASSES")]
    if "classes" in notes:
        with contextlib.suppress(ValueError):
            candidates.append(json.loads(notes["classes"]))
    for names in candidates:
        # One class is often written as a string.
        names = (names,) if isinstance(names, str) else names
        is_list = isinstance(names, list | tuple) and len(names) > 0
        if is_list and all(isinstance(name, str) for name in names):
            return tuple(names)
    return None
