"""Detections in all images of a dataset."""


def detect_dataset(
    detector, dataset, config, evaluator, *, batch_size=1, max_canvas_shapes=None
):
    """Gives the detections in all images of a dataset to an evaluator, with progress.

    Args:
        detector: a `DenseDetector`.
        dataset: `DetectionDataset`.
        config: `Config`, its `data` says how images become network inputs.
        evaluator: `CocoEvaluator`.
        batch_size: int.
        max_canvas_shapes: int, padded shapes at most. None gives each image the one
            that it has in `Predictor`.
    """
    from vfnet_tf.progress import Progress

    batches = read_batches(dataset, config, batch_size, max_canvas_shapes)
    progress = Progress(len(dataset))
    # numpy, since a detector may run on another backend than the pipeline.
    for batch in batches.as_numpy_iterator():
        found = detector.detect(batch["images"], batch["image_size"], batch["scale"])
        evaluator.update(batch["image_id"], _as_numpy(found))
        progress.add(len(batch["image_id"]))
    progress.close()


def read_batches(dataset, config, batch_size=1, max_canvas_shapes=None):
    """Each image of a dataset once, as network inputs; arguments as `detect_dataset`'s.

    Returns:
        `tf.data.Dataset` of batch dicts, see `build_pipeline`.
    """
    from vfnet_tf.data.pipeline import build_pipeline

    data = config.data
    return build_pipeline(
        dataset,
        batch_size=batch_size,
        image_size=data.image_size,
        keep_ratio=data.keep_ratio,
        normalization=data.normalization,
        # As many as there are images: none are merged.
        max_shapes=len(dataset) if max_canvas_shapes is None else max_canvas_shapes,
        training=False,
        pad_last_batch=False,
    )


def describe_views(sizes):
    """A line that says at which sizes an image is looked at."""
    listed = ", ".join(f"{first}x{second}" for first, second in sizes)
    return f"{listed}, each plain and mirrored"


def detect_views(detector, dataset, config, evaluator, sizes):
    """`detect_dataset` with test-time augmentation, image by image.

    Args:
        detector, dataset, config, evaluator: as there.
        sizes: (short, long) pairs, see `data.views.make_views`.
    """
    from vfnet_tf.data.views import build_views
    from vfnet_tf.progress import Progress

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
