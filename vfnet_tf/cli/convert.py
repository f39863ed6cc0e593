"""`vfnet convert`: official PyTorch checkpoints to run directories, and back."""

import dataclasses
import pathlib
from typing import Annotated

import tyro


@dataclasses.dataclass(frozen=True)
class ConvertOptions:
    """Convert a checkpoint of the official code to a run directory, or back.

    vfnet convert OFFICIAL.pth --config vfnet_r50_fpn_1x_coco --out runs/official
    writes config.json and best.weights.h5, which evaluate, predict, export and train
    take. vfnet convert RUN_DIR --to-pytorch --out mine.pth writes a state dict with
    the official names.
    """

    source: Annotated[
        tyro.conf.Positional[pathlib.Path], tyro.conf.arg(metavar="SOURCE")
    ]
    """.pth or .safetensors with the names of mmdetection 2 or 3, or the name of a published
    model; with --to-pytorch also a run directory (its best weights) or .weights.h5"""
    out: pathlib.Path
    """the run directory to write; with --to-pytorch the file, .pth or .safetensors"""
    config: str | None = None
    """name or file of the config that the checkpoint was trained with; weights with a
    config.json beside need none"""
    to_pytorch: bool = False
    """write a file with the official names, not a run directory"""
    overwrite: bool = False
    """replace what --out names if it is there already"""


OPTIONS = ConvertOptions


def run(options):
    """Converts in the direction of `options`; returns the exit status."""
    if options.to_pytorch:
        _to_pytorch(options)
    else:
        _to_run_directory(options)
    return 0


def _to_run_directory(options):
    from vfnet_tf.checkpoints.published import closest_published
    from vfnet_tf.config import save_config
    from vfnet_tf.inference.load import load_checkpoint
    from vfnet_tf.presets import OFFICIAL_SUFFIXES, is_preset_name

    is_file = options.source.suffix in OFFICIAL_SUFFIXES and options.source.is_file()
    if not is_file and (options.source.exists() or not is_preset_name(options.source)):
        raise ValueError(
            "The checkpoint must be an existing .pth or .safetensors file or the name "
            "of a published model; a run directory is converted with --to-pytorch. "
            f"Received: {options.source}.{closest_published(options.source)}"
        )
    files = [options.out / name for name in ("config.json", "best.weights.h5")]
    # A training state would belong to another training.
    files.append(options.out / "last.weights.h5")
    _check_target(files, options)
    if options.out.exists() and not options.out.is_dir():
        raise ValueError(f"--out must be a folder. Received: --out {options.out}")
    detector, config, _ = load_checkpoint(options.source, options.config)
    options.out.mkdir(parents=True, exist_ok=True)
    for path in files:
        path.unlink(missing_ok=True)
    detector.save_weights(options.out / "best.weights.h5")
    save_config(config, options.out / "config.json")
    _report(options.source, config, detector)
    print(f"written    {options.out}: config.json, best.weights.h5")


def _to_pytorch(options):
    from vfnet_tf.checkpoints.pytorch import to_pytorch_state_dict, write_checkpoint
    from vfnet_tf.inference.load import load_checkpoint
    from vfnet_tf.presets import OFFICIAL_SUFFIXES

    if options.out.suffix not in OFFICIAL_SUFFIXES:
        raise ValueError(
            "--out must end in .pth or .safetensors with --to-pytorch. "
            f"Received: --out {options.out}"
        )
    _check_target([options.out], options)
    detector, config, weights = load_checkpoint(options.source, options.config)
    state = to_pytorch_state_dict(detector)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_checkpoint(options.out, state, config.class_names)
    _report(weights, config, detector)
    size = options.out.stat().st_size / 1e6
    print(f"written    {options.out}: {len(state)} tensors, {size:.1f} MB")


def _check_target(files, options):
    existing = [str(path) for path in files if path.exists()]
    if existing and not options.overwrite:
        raise ValueError(
            "--out must name something new, or --overwrite be given. "
            f"Received: --out {options.out}, which has {', '.join(existing)}"
        )


def _report(weights, config, detector):
    from vfnet_tf.checkpoints.names import official_variables

    print(f"weights    {weights}")
    print(
        f"model      {config.name}: {len(official_variables(detector))} tensors, "
        f"{detector.count_params() / 1e6:.1f} M parameters"
    )
    names = ", ".join(config.class_names[:10]) or "not named"
    more = ", ..." if len(config.class_names) > 10 else ""
    print(f"classes    {detector.num_classes}: {names}{more}")
