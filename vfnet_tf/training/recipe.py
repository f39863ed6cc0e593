"""What of a config is fitted to the user's data, where the user did not choose it."""

from vfnet_tf.config import override

#: Most that the warm-up may take of all updates.
WARMUP_SHARE = 0.1


def fit_schedule(config, num_images):
    """Fits the warm-up of a step schedule to the length of the training.

    Args:
        config: `Config`.
        num_images: int, training images.

    Returns:
        (`Config`; list of lines that say what was changed, why, and the option that
        keeps it).

    >>> from vfnet_tf.config import load_config
    >>> config, lines = fit_schedule(load_config("vfnet_r50_fpn_1x_coco"), 160)
    >>> config.training.warmup_steps  # of 12 epochs of 10 steps
    12
    """
    training = config.training
    if training.schedule != "step":
        return config, []
    steps = -(-num_images // training.batch_size) * training.epochs
    updates = steps // training.accumulate_steps
    most = max(int(updates * WARMUP_SHARE), 1)
    if training.warmup_steps <= most:
        return config, []
    line = (
        f"warm-up    {most} steps, a tenth of the {updates} of this training, in place of "
        f"the config's {training.warmup_steps} (--recipe paper keeps these)"
    )
    return override(config, training__warmup_steps=most), [line]
