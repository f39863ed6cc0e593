"""The weights that a training starts from."""

import pathlib
import typing

from vfnet_tf import config as configs
from vfnet_tf.checkpoints.imagenet import (
    REPOSITORIES,
    WeightsUnavailableError,
    fetch_application_weights,
    find_imagenet_weights,
)
from vfnet_tf.checkpoints.published import PATHS, WITHOUT_ADDRESS, is_published
from vfnet_tf.presets import (
    find_weights,
    is_preset_name,
    preset_directory,
    published_weights,
)


class Start(typing.NamedTuple):
    """What a training starts from.

    Attributes:
        config: `Config` for these weights.
        weights: path, function or None, see `Trainer(initial_weights=)`.
        kind: `"detector"`, `"backbone"`, or `"none"` for random weights.
    """

    config: object
    weights: object
    kind: str


def with_weights(config, weights, run_dir, *, is_generated=False, tries_coco=False):
    """The config for the chosen initial weights, and what `Trainer` starts from.

    Args:
        config: `Config`.
        weights: `"coco"`, the published weights of the config; `"imagenet"`; `"none"`;
            the name of a published model; the path of a run directory or of a file of
            weights; or None: those of the run in `run_dir`, of the preset, ImageNet's
            where they can be had, else none.
        run_dir: `Path` of the run directory; a run that is there goes on.
        is_generated: bool, whether the images are generated ones: None then asks no
            network.
        tries_coco: bool, whether None takes the published weights before ImageNet's.

    Returns:
        `Start`.

    Raises:
        ValueError: if the weights are not there or are not of that backbone.
    """
    backbone = config.model.backbone
    # "keras" and "kerashub" are models from elsewhere.
    kind = backbone.name.partition(":")[0] if ":" in backbone.name else None
    is_name = (
        weights is not None and is_preset_name(weights) and not _path(weights).exists()
    )
    is_by_name = is_name or weights in (None, "imagenet", "coco")
    scratch = configs.override(
        config,
        model__backbone__norm="batch_norm",
        model__backbone__frozen_stages=-1,
        model__backbone__weights=None,
    )
    if weights == "none":
        print("weights    none: training from scratch, batch norms train")
        return Start(scratch, None, "none")
    if is_by_name and _is_resumed(run_dir):
        config = _of_run(config, weights, run_dir)
        is_trained = config.model.backbone.norm == "frozen_batch_norm"
        return Start(config, None, "backbone" if is_trained else "none")
    if weights is None and backbone.norm == "batch_norm":
        print("weights    none: the config is for training from scratch")
        return Start(scratch, None, "none")
    if weights is None and is_generated and kind != "kerashub":
        print(
            "weights    none: generated images need no network; --weights imagenet asks "
            "it. Training from scratch, batch norms train"
        )
        return Start(scratch, None, "none")
    if is_name or weights == "coco" or (weights is None and tries_coco):
        name = str(weights) if is_name else config.name
        try:
            return _of_published(config, name)
        except WeightsUnavailableError as error:
            if weights is not None:
                raise ValueError(f"--weights {weights}: {error}") from error
            print(f"weights    not COCO's: {error}")
    if is_by_name and kind == "kerashub":
        return Start(_of_preset(config, weights), None, "backbone")
    if is_by_name:
        try:
            return Start(*_imagenet(config, kind), "backbone")
        except WeightsUnavailableError as error:
            if weights == "imagenet":
                raise ValueError(
                    f"--weights imagenet: {error}. Give a file (--weights PATH), or "
                    "--weights none"
                ) from error
            print(
                f"weights    none: no ImageNet weights, since {error}. Training from "
                "scratch, batch norms train"
            )
        return Start(scratch, None, "none")
    return _from_file(config, kind, weights)


def _is_resumed(run_dir):
    from vfnet_tf.training.trainer import find_state

    return find_state(run_dir) is not None and (run_dir / "config.json").is_file()


def _of_published(config, name):
    """The config and the weights of a published model, or of a repository of the hub."""
    if not is_published(name) and is_preset_name(name):
        return _from_file(config, None, preset_directory(name))
    weights = published_weights(config, name)
    print(f"weights    COCO, the published ones of {name}")
    return Start(config, weights, "detector")


def _of_run(config, weights, run_dir):
    """The config of a run that goes on."""
    print(f"weights    those of the run in {run_dir}")
    earlier = configs.load_config(run_dir).model.backbone
    if weights is None and earlier.name == config.model.backbone.name:
        # What could be had when the run began, not what can be had now, decides.
        return configs.override(config, model__backbone=earlier)
    return config


def _of_preset(config, weights):
    """The config for the weights of a preset of KerasHub."""
    if weights == "imagenet":
        raise ValueError(
            "--weights imagenet is not for presets of KerasHub, which bring their own "
            f"weights: leave --weights out. Received: {config.model.backbone.name}"
        )
    print("weights    those of the preset")
    return configs.override(config, model__backbone__weights=configs.PRETRAINED)


def _imagenet(config, kind):
    """The config and the function for ImageNet weights."""
    name = config.model.backbone.name
    if kind == "keras":
        fetch_application_weights(name)
        print("weights    ImageNet, those of keras.applications")
        return (
            configs.override(config, model__backbone__weights=configs.PRETRAINED),
            None,
        )
    return config, _imagenet_weights(name)


def _from_file(config, kind, weights):
    """The config and the path or function for a file of weights or a run directory."""
    name = config.model.backbone.name
    path = _path(weights)
    if path.is_dir():
        path = find_weights(path)
    if not path.is_file():
        known = ["coco", "imagenet", "none", *PATHS, *WITHOUT_ADDRESS]
        raise ValueError(
            "--weights must be 'coco', 'imagenet', 'none', the name of a published model "
            "(`vfnet configs` lists them), a run directory or an existing file. "
            f"Received: {weights}.{configs.did_you_mean(weights, known)}"
        )
    is_own = kind is None
    if path.suffix in (".pth", ".pt", ".safetensors") and is_own:
        return Start(config, *_foreign_weights(path))
    print(f"weights    {path}")
    is_of_detector = path.name.endswith(".weights.h5") and (is_own or _has_head(path))
    if path.suffix in (".npz", ".h5") and not is_own and not is_of_detector:
        config = configs.override(config, model__backbone__weights=str(path))
        return Start(config, None, "backbone")
    if is_of_detector:
        if (path.parent / "config.json").is_file():
            # Which norms train decides what variables there are.
            earlier = configs.load_config(path.parent).model.backbone
            config = configs.override(config, model__backbone=earlier)
        return Start(config, path, "detector")
    raise ValueError(
        "--weights takes a run directory, a .weights.h5 of the same detector, a .pth or "
        ".safetensors for a backbone of our own, or an .npz by layer names or Keras's "
        f".h5 for a keras: or kerashub: backbone. Received: {path} for {name}"
    )


def _path(weights):
    return pathlib.Path(weights).expanduser()


def _has_head(path):
    """Whether a `.weights.h5` is of a whole detector; a damaged one is said to be."""
    import h5py

    try:
        with h5py.File(path) as file:
            return "head" in file
    except OSError:
        return True


def _imagenet_weights(backbone_name):
    """A function that loads ImageNet weights into a detector's backbone."""
    from vfnet_tf.checkpoints.backbone import load_backbone_weights

    path = find_imagenet_weights(backbone_name)
    print(f"weights    ImageNet, {REPOSITORIES[backbone_name]}: {path}")
    return lambda detector: load_backbone_weights(detector.backbone, path)


def _foreign_weights(path):
    """A function that loads a file of PyTorch's world, and the kind of its weights."""
    from vfnet_tf.checkpoints.architecture import is_detector
    from vfnet_tf.checkpoints.backbone import load_backbone_weights
    from vfnet_tf.checkpoints.pytorch import load_pytorch_checkpoint, read_checkpoint

    checkpoint = read_checkpoint(path)
    if is_detector(checkpoint.tensors):
        print(f"weights    {path}, a whole detector")
        return lambda model: load_pytorch_checkpoint(model, checkpoint), "detector"
    print(f"weights    {path}, a backbone")
    return lambda model: load_backbone_weights(model.backbone, checkpoint), "backbone"
