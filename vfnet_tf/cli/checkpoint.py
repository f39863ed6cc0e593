"""The detector that `--checkpoint` names."""

import pathlib


def load_checkpoint(checkpoint, config=None):
    """Builds and loads the detector of a run, or of an official `.pth` file.

    Args:
        checkpoint: a run directory, a `.weights.h5` or a `.pth` file.
        config: name or path; None takes the `config.json` beside the weights. A `.pth`
            has none, so it needs one.

    Returns:
        (detector, `Config`, `pathlib.Path` of the weights).

    Raises:
        ValueError: if something is missing or does not fit, with its name.
    """
    from vfnet_tf.builder import build_detector
    from vfnet_tf.checkpoints.pytorch import load_pytorch_checkpoint
    from vfnet_tf.config import load_config
    from vfnet_tf.predictor import find_checkpoint, load_detector

    path = pathlib.Path(checkpoint).expanduser()
    if path.suffix == ".pth" and path.is_file():
        if config is None:
            raise ValueError(
                "A .pth file needs --config, the config it was trained with, e.g. "
                f"vfnet_r50_fpn_1x_coco. Received: --checkpoint {path}"
            )
        config = load_config(config)
        detector = load_pytorch_checkpoint(build_detector(config), path)
        return detector, config, path
    config, weights = find_checkpoint(path, config)
    return load_detector(config, weights), config, weights
