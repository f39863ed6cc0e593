"""The settings of a run as frozen dataclasses; files in `configs/` hold instances."""

import dataclasses
import fnmatch
import importlib.util
import json
import pathlib
import types
import typing

from vfnet_tf.data.settings import DataConfig as DataConfig
from vfnet_tf.files import write_file

# Kept importable from here.
from vfnet_tf.foreign_text import did_you_mean as did_you_mean

#: Value of `BackboneConfig.weights` for the weights that come with a Keras model.
PRETRAINED = "pretrained"


@dataclasses.dataclass(frozen=True)
class BackboneConfig:
    """A backbone.

    Attributes:
        name: `"resnet18"`, `"resnet34"`, `"resnet50"`, `"resnet101"`,
            `"resnext101_32x4d"`, `"resnext101_64x4d"`, `"res2net101_v1d_26w_4s"`;
            `"keras:MODEL"`, a model of `keras.applications`; or `"kerashub:PRESET"`, a
            preset of KerasHub or its directory.
        norm: `"frozen_batch_norm"` for pretrained weights, `"batch_norm"` from scratch.
        frozen_stages: stages without gradients, see `ResNet`; for Keras models 1 freezes
            up to the end of C2 if there is one (see `backbones.stages`), 2 of C3, and so
            on, 0 nothing.
        weights: of Keras models: `"pretrained"` for those of the preset of KerasHub or
            of `keras.applications`; path of a file, see `builder.load_layer_weights`; or
            None.
        trainable_norms: of a Keras model: prefix of the names of the batch norms that
            use the batch's statistics in training, None for none; `"auto"` for those
            that `weights` does not contain, and with `norm="batch_norm"` for all.
        deformable: levels whose 3x3 convolutions are deformable, see `ResNet`.
        architecture: JSON of KerasHub's backbone as Keras serialises it: a run keeps it
            and is rebuilt without the preset. None reads the preset.
    """

    name: str = "resnet50"
    norm: str = "frozen_batch_norm"
    frozen_stages: int = 1
    weights: str | None = None
    trainable_norms: str | None = "auto"
    deformable: tuple[str, ...] = ()
    architecture: str | None = None


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The detector; defaults are those of VFNet-ResNet-50 in the paper.

    Attributes:
        detector: `"vfnet"`, `"fcos"`, `"atss"`, `"retinanet"`, `"foveabox"` or
            `"reppoints"`.
        neck: `"fpn"`, or `"pafpn"`, that of VFNet-X.
        deformable_towers: of VFNet: the last convolution of each tower is deformable.
        star, refine: of VFNet, see `VFNetHead`.
        assigner: `"atss"` or `"fcos"` for the detectors that learn from points, VFNet,
            FCOS and ATSS; None is the detector's own.
        class_loss: `"varifocal"`, `"focal"` or `"quality_focal"`.
        loss_alpha, loss_gamma, iou_weighted: of the varifocal loss (Table 2).
        focal_alpha, focal_gamma: of the focal loss.
        refined_box_loss_weight: of VFNet and RepPoints.
        centerness_loss_weight: of FCOS and ATSS.
        others: see `VFNet`, `FPN` and `VFNetHead`.
    """

    detector: str = "vfnet"
    backbone: BackboneConfig = BackboneConfig()
    num_classes: int = 80
    neck: str = "fpn"
    neck_filters: int = 256
    head_filters: int = 256
    head_convs: int = 3
    deformable_towers: bool = False
    star: bool = True
    refine: bool = True
    assigner: str | None = None
    class_loss: str = "varifocal"
    loss_alpha: float = 0.75
    loss_gamma: float = 2.0
    iou_weighted: bool = True
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    box_loss_weight: float = 1.5
    refined_box_loss_weight: float = 2.0
    centerness_loss_weight: float = 1.0
    score_threshold: float = 0.05
    nms_iou_threshold: float = 0.6
    candidates_per_level: int = 1000
    max_detections: int = 100
    nms: str = "hard"  # "soft_linear", "soft_gaussian"
    soft_nms_sigma: float = 0.5
    soft_nms_min_score: float = 1e-3


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """The schedule.

    Defaults are the official 1x schedule: docs/parity.md, S34 and S35.

    Attributes:
        epochs: int.
        batch_size: images per step over all replicas.
        base_learning_rate: at `base_batch_size` images per step; scaled linearly.
        base_batch_size: int.
        warmup_steps: steps of the linear warm-up from `warmup_ratio` x.
        warmup_ratio: float.
        drop_epochs: epochs, counted from 0, before which the rate is multiplied by 0.1;
            fractions are allowed.
        optimizer: `"sgd"`, the official one, or `"adamw"`, which gets further in a few
            hundred steps from scratch.
        momentum: float, of SGD.
        weight_decay: float; SGD adds it to the gradient, AdamW decouples it.
        bias_lr_multiplier, bias_decay_multiplier: of SGD, for biases: 2 and 0 for
            VFNet, 1 and 1 for the other detectors (docs/parity.md, S34).
        seed: int, of the initialisers, the order of images and their flips.
        precision: `"float32"`, `"mixed_bfloat16"` or `"mixed_float16"`.
        scale_learning_rate: whether `base_learning_rate` is scaled with the images of an
            update, those of all `accumulate_steps`.
        schedule: `"step"`, warm-up and drops; `"cosine"`, warm-up and half a cosine to
            the end of the training, Keras's `CosineDecay`; or `"cosine_cycles"`, half a
            cosine in each epoch, without warm-up (docs/parity.md, S36). Both cosines end
            at 1 % of the rate.
        accumulate_steps: batches whose gradients are averaged for one update. Warm-up
            and drops count updates. Each batch's loss is divided by its own number of
            positives, so an object in a crowded batch has less weight than in one large
            batch. One device only.
        clip_norm: largest global norm of the gradient, summed over replicas; None, the
            official setting, for no clipping.
        ema_momentum: of a moving average of the weights, such as 0.999; the average is
            evaluated and kept as the best. None for no average.
        swa: whether the mean of the weights at the ends of all epochs is evaluated and
            kept as the best: the official phase after the training (`vfnet swa`).
    """

    epochs: int = 12
    batch_size: int = 16
    base_learning_rate: float = 0.01
    base_batch_size: int = 16
    warmup_steps: int = 500
    warmup_ratio: float = 0.1
    drop_epochs: tuple[float, ...] = (8, 11)
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 1e-4
    bias_lr_multiplier: float = 2.0
    bias_decay_multiplier: float = 0.0
    seed: int = 0
    precision: str = "float32"
    scale_learning_rate: bool = True
    schedule: str = "step"
    accumulate_steps: int = 1
    clip_norm: float | None = None
    ema_momentum: float | None = None
    swa: bool = False


@dataclasses.dataclass(frozen=True)
class Config:
    """One run: model, data, training and classes.

    Attributes:
        name: stem of the config's file.
        class_names: one per label; empty until a dataset is known.
        category_ids: id of each label in COCO-format files; empty until then.
    """

    name: str = "vfnet_r50_fpn_1x_coco"
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()
    class_names: tuple[str, ...] = ()
    category_ids: tuple[int, ...] = ()


def override(config, **changes):
    """A copy of a config with fields changed, each checked against its type.

    Args:
        config: any of the dataclasses of this module.
        **changes: `field=value`; fields of nested configs as `model__num_classes=3`.

    Raises:
        ValueError: for a field that does not exist or a value of another type.

    >>> config = override(load_config("vfnet_r50_fpn_1x_coco"), training__epochs=24)
    >>> config.training.epochs, config.model.num_classes
    (24, 80)
    """
    nested, own = {}, {}
    for key, value in changes.items():
        first, _, rest = key.partition("__")
        if rest:
            nested.setdefault(first, {})[rest] = value
        else:
            own[first] = value
    hints = _field_types(type(config))
    for name in (*nested, *own):
        if name not in hints:
            raise ValueError(
                f"{type(config).__name__} has the fields {', '.join(sorted(hints))}. "
                f"Received: {name}.{did_you_mean(name, hints)}"
            )
    for name, parts in nested.items():
        own[name] = override(getattr(config, name), **parts)
    for name, value in own.items():
        own[name] = _checked(value, hints[name], f"{type(config).__name__}.{name}")
    return dataclasses.replace(config, **own)


def with_epochs(config, epochs):
    """A copy of a `Config` with so many epochs; the drops keep their relative place.

    >>> with_epochs(load_config("vfnet_r50_fpn_1x_coco"), 24).training.drop_epochs
    (16.0, 22.0)
    """
    training = config.training
    if epochs == training.epochs:
        return config
    ratio = epochs / training.epochs
    drops = tuple(round(epoch * ratio, 2) for epoch in training.drop_epochs)
    return override(config, training__epochs=epochs, training__drop_epochs=drops)


def _field_types(kind):
    """Field -> type of a dataclass."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _checked(value, hint, name):
    """Returns `value` as the type `hint`, a tuple for a list; else a ValueError."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is tuple and isinstance(value, list):
        return tuple(value)
    if origin is tuple and isinstance(value, list | tuple):
        if arguments[-1] is Ellipsis:
            return tuple(_checked(item, arguments[0], name) for item in value)
        if len(value) == len(arguments):
            return tuple(
                _checked(item, kind, name)
                for item, kind in zip(value, arguments, strict=True)
            )
    if origin is types.UnionType:
        for kind in arguments:
            if kind is type(None) and value is None:
                return None
            if kind is not type(None) and isinstance(value, kind):
                return value
            if kind is float and isinstance(value, int) and not isinstance(value, bool):
                return float(value)
    if isinstance(hint, type):
        if hint is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
            return value
    raise ValueError(f"`{name}` must be of type {hint}. Received: {name}={value!r}")


def to_dict(config):
    """A config as a dict of JSON types."""
    data = config if isinstance(config, DataConfig) else getattr(config, "data", None)
    augment = None
    if data is not None and not isinstance(data.augment, str):
        from vfnet_tf.data.augmentation import presets

        # `asdict` forgets which class a dataclass has.
        augment = json.loads(json.dumps(presets.to_list(data.augment)))
    values = json.loads(json.dumps(dataclasses.asdict(config)))
    if augment is not None:
        own = values if data is config else values["data"]
        own["augment"] = augment
    return values


def from_dict(values, kind=Config):
    """The inverse of `to_dict`; unknown keys and wrong types are errors."""
    if not isinstance(values, dict):
        raise ValueError(
            f"{kind.__name__} must be a JSON object. Received: {type(values).__name__}"
        )
    hints = _field_types(kind)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ValueError(f"{kind.__name__} has no such fields. Received: {unknown}")
    fields = {}
    for name, value in values.items():
        hint = hints[name]
        if kind is DataConfig and name == "augment" and isinstance(value, list | tuple):
            fields[name] = tuple(map(augmentation_from_dict, value))
        elif dataclasses.is_dataclass(hint):
            fields[name] = from_dict(value, hint)
        else:
            fields[name] = _checked(value, hint, f"{kind.__name__}.{name}")
    return kind(**fields)


def augmentation_from_dict(values):
    """An `Augmentation` from a dict of its class's `name` and its settings."""
    from vfnet_tf.data.augmentation import presets

    if not isinstance(values, dict):
        raise ValueError(
            "An augmentation must be a JSON object with its `name` and settings. "
            f"Received: {values!r}"
        )
    settings = dict(values)
    return from_dict(settings, presets.augmentation_class(settings.pop("name", None)))


def save_config(config, path):
    """Writes a config as JSON; the file appears whole or not at all."""
    write_file(path, json.dumps(to_dict(config), indent=2) + "\n")


def _config_directories():
    package = pathlib.Path(__file__).parent
    # Installed, the configs lie inside the package; in a clone, beside it.
    return [package / "configs", package.parent / "configs"]


def config_files():
    """Paths of the configs that ship with the library, by name, sorted."""
    files = {
        path.stem: path
        for directory in reversed(_config_directories())
        for path in directory.glob("*.py")
        if path.stem != "__init__"
    }
    return dict(sorted(files.items()))


def list_configs(pattern=None):
    """Names of the configs that ship with the library, sorted.

    Args:
        pattern: str, names that contain it; with `*`, `?` or `[`, names that match it as
            a whole, e.g. `"vfnet_r*_2x_coco"`. None for all.

    >>> list_configs("vfl_atss")
    ['vfl_atss_r50_fpn_1x_coco']
    """
    names = list(config_files())
    if pattern is None:
        return names
    if not any(magic in pattern for magic in "*?["):
        pattern = f"*{pattern}*"
    return fnmatch.filter(names, pattern)


def shipped_config(name):
    """The `Config` of that name that ships with the library, whatever folders there are.

    Args:
        name: one of `list_configs`.
    """
    return _run_config_file(config_files()[name])


def load_config(config):
    """A `Config` from its name, a path of a `.py` or `.json` file, or itself.

    Args:
        config: a `Config`; the name of a shipped config (see `list_configs`); a path of
            a Python file that defines `config`, or of a JSON file; or a run directory,
            whose `config.json` is read.

    Raises:
        ValueError: if there is no such config; close names are suggested.
    """
    if isinstance(config, Config):
        return config
    path, files = pathlib.Path(config), config_files()
    is_run = (path / "config.json").is_file()
    # Any folder may have the name of a config, such as one of data.
    if path.is_dir() and (is_run or str(config) not in files):
        if not is_run:
            raise ValueError(
                f"A run directory must hold config.json. Received: {config}"
            )
        # The weights of a run lie in the run: nothing is fetched to read it.
        found = _read_config_file(path / "config.json")
        return override(found, model__backbone__weights=None)
    if path.suffix == ".json" and path.is_file():
        return _read_config_file(path)
    if path.suffix == ".py" and path.is_file():
        return _run_config_file(path)
    if str(config) in files:
        return _run_config_file(files[str(config)])
    raise ValueError(
        "`config` must be a config's name, a .py or .json file, or a run directory. "
        f"Received: {config}.{did_you_mean(config, files)} "
        f"Known names: {', '.join(files)}"
    )


def _read_config_file(path):
    try:
        return from_dict(json.loads(path.read_text(encoding="utf-8")))
    # OverflowError: an integer of hundreds of digits in the place of a float.
    except (OSError, ValueError, RecursionError, OverflowError) as error:
        raise ValueError(
            f"A config must be JSON as `vfnet train` writes it. Received: {path}: {error}"
        ) from error


def _run_config_file(path):
    spec = importlib.util.spec_from_file_location(f"vfnet_tf_config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = getattr(module, "config", None)
    if not isinstance(config, Config):
        raise ValueError(
            "A config file must define `config`, a vfnet_tf.config.Config. "
            f"Received: {path}"
        )
    return config
