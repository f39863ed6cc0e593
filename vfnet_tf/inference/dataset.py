"""Detections in all images of a dataset."""

from vfnet_tf.config import override
from vfnet_tf.progress import Progress


def detect_dataset(
    detector, dataset, config, evaluator, *, batch_size=1, max_canvas_shapes=None
):
    """Gives the detections in all images of a dataset to an evaluator, with progress.

    Args:
        detector: a `DenseDetector`.
        dataset: `DetectionDataset`.
        config: `Config`; its `data` says how images become network inputs.
        evaluator: `CocoEvaluator`.
        batch_size: int.
        max_canvas_shapes: int, padded shapes at most. None gives each image the one
            that it has in `Predictor`.
    """
    batches = read_batches(dataset, config, batch_size, max_canvas_shapes)
    progress = Progress(len(dataset))
    # numpy, since a detector may run on another backend than the pipeline.
    for batch in batches.as_numpy_iterator():
        found = detector.detect(batch["images"], batch["image_size"], batch["scale"])
        evaluator.update(batch["image_id"], _as_numpy(found))
        progress.add(len(batch["image_id"]))
    progress.close()


def read_batches(dataset, config, batch_size=1, max_canvas_shapes=None):
    """Each image of a dataset once, as network inputs. See `detect_dataset`.

    Returns:
        `tf.data.Dataset` of batch dicts, see `build_pipeline`.
    """
    from vfnet_tf.data.pipeline import build_pipeline

    # As many canvases as there are images: none are merged.
    shapes = len(dataset) if max_canvas_shapes is None else max_canvas_shapes
    return build_pipeline(
        dataset,
        config.data,
        batch_size=batch_size,
        max_canvas_shapes=shapes,
        cache_decoded=False,
        training=False,
        pad_last_batch=False,
    )


def describe_views(sizes):
    """The sizes of the views as text."""
    listed = ", ".join(f"{first}x{second}" for first, second in sizes)
    return f"{listed}, each plain and mirrored"


def detect_views(detector, dataset, config, evaluator, sizes):
    """`detect_dataset` with test-time augmentation, image by image.

    Args:
        detector, dataset, config, evaluator: as there.
        sizes: (short, long) pairs, see `data.views.make_views`.
    """
    from vfnet_tf.data.views import build_views

    images = build_views(
        dataset,
        sizes,
        normalization=config.data.normalization,
        keep_ratio=config.data.keep_ratio,
    )
    progress = Progress(len(dataset))
    for image_id, views in images.as_numpy_iterator():
        batch = [{name: view[name][None] for name in view} for view in views]
        evaluator.update([image_id], _as_numpy(detector.detect_augmented(batch)))
        progress.add()
    progress.close()


def _as_numpy(tensors):
    import keras

    return {name: keras.ops.convert_to_numpy(value) for name, value in tensors.items()}


def config_at_size(config, image_size, has_views=False):
    """The config with another size of the images, or as it is for None.

    Raises:
        ValueError: for an invalid size, or together with views, which have their own.
    """
    if image_size is None:
        return config
    from vfnet_tf.data.canvases import check_image_size

    if has_views:
        raise ValueError(
            "--image-size is for one view of each image, --tta has sizes of its own. "
            f"Received: --image-size {image_size} with --tta"
        )
    size = check_image_size(image_size, config.data.keep_ratio)
    return override(config, data__image_size=size)


def view_sizes(config, tta):
    """The sizes of views for test-time augmentation; `()` for no augmentation.

    Args:
        config: `Config`.
        tta: list of sizes, or `"official"`.

    Raises:
        ValueError: if the official ones are asked for and the config stretches images.
    """
    if tta != "official":
        return tuple(tta)
    if not config.data.keep_ratio:
        raise ValueError(
            "The official sizes of --tta keep the ratio of sides, and this config "
            "stretches images: give --tta-sizes, pairs of height and width. Received: "
            f"--tta for the config {config.name!r} with image_size="
            f"{config.data.image_size}"
        )
    from vfnet_tf.data.views import OFFICIAL_SIZES

    return OFFICIAL_SIZES
