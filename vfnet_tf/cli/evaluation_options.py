"""Checks of options for commands that run a detector over a dataset."""


def check_data(options):
    """Refuses a `limit` below 1 and `data` that does not exist."""
    if options.limit is not None and options.limit < 1:
        raise ValueError(f"--limit must be >= 1. Received: --limit {options.limit}")
    if options.data is not None:
        from vfnet_tf.data.formats.readers import find_format

        find_format(options.data)


def check_model_options(options):
    """Refuses options that a `--model` file, which has one size, does not support."""
    names = ("tta", "tta_sizes", "image_size", "config", "max_canvas_shapes")
    unused = [name for name in names if getattr(options, name, None)]
    if options.batch_size != 1:
        unused.append("batch_size")
    if unused:
        listed = ", ".join(f"--{name.replace('_', '-')}" for name in unused)
        raise ValueError(
            "--model runs image by image, at the size and by the config of the file. "
            f"Received: --model with {listed}"
        )
