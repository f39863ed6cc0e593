"""Preview of a training without a step: data, batches and memory."""

import collections
import pathlib

import numpy as np
import tensorflow as tf

from vfnet_tf.data.augmentation.presets import augmentations
from vfnet_tf.data.own_transforms import name_of
from vfnet_tf.data.pipeline import build_pipeline
from vfnet_tf.drawing import draw_detections, draw_grid, save_image
from vfnet_tf.training import strategies

# COCO's sizes: areas up to 32^2 and 96^2 pixels.
_AREAS = {"small": 32**2, "medium": 96**2, "large": float("inf")}
# Memory of a process that has imported TensorFlow and Keras and built a graph.
_RUNTIME_BYTES = 550e6
# Operations without memory of their own for the output.
_WITHOUT_MEMORY = {
    "BroadcastTo",
    "Cast",
    "Const",
    "ExpandDims",
    "Fill",
    "Identity",
    "IdentityN",
    "Placeholder",
    "ReadVariableOp",
    "Reshape",
    "Squeeze",
    "StopGradient",
}


def describe_data(dataset):
    """Counts of a dataset, as lines of text.

    Args:
        dataset: `DetectionDataset`.

    Returns:
        str: objects by class (the twenty commonest), per image, and by COCO's sizes in
        original pixels.
    """
    counts = [len(record.boxes) for record in dataset]
    labels = collections.Counter(
        int(label) for record in dataset for label in record.labels
    )
    boxes = np.concatenate([record.boxes for record in dataset]).astype("float64")
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    sizes, smallest = [], 0.0
    for name, largest in _AREAS.items():
        number = int(np.sum((areas > smallest) & (areas <= largest)))
        sizes.append(f"{number} {name}")
        smallest = largest
    common = [
        f"{dataset.class_names[label]} {number}"
        for label, number in labels.most_common(20)
    ]
    absent = dataset.num_classes - len(labels)
    return "\n".join(
        [
            f"objects    {sum(counts)} in {len(counts)} images: {min(counts)} to "
            f"{max(counts)} in one, {np.mean(counts):.1f} on average, "
            f"{counts.count(0)} images without",
            f"sizes      {', '.join(sizes)} (areas up to 32x32, 96x96 pixels, above)",
            f"by class   {', '.join(common)}"
            + (f"; {absent} classes without an object" if absent else ""),
        ]
    )


def describe_batches(shapes, batch_size):
    """The padded shapes of an epoch's batches, as lines of text.

    Args:
        shapes: list of (height, width), one for each step.
        batch_size: int, images of one step over all replicas.

    Returns:
        str.
    """
    lines = [
        f"batches    {steps:5d} of {batch_size} x {height} x {width} x 3"
        for (height, width), steps in sorted(collections.Counter(shapes).items())
    ]
    return "\n".join(lines)


def estimate_step_memory(detector, batch_shape, slots=1):
    """Estimates the memory of a process that makes a training step.

    It counts weights, gradients, the optimizer's slots, and all outputs of the forward
    pass, since the backward pass needs them. For VFNet-ResNet-50 on 2x256x320 the estimate
    was 2.0 GB and the measured memory 2.03 GB.

    Args:
        detector: `DenseDetector`.
        batch_shape: (B, H, W) of the largest batch of one replica.
        slots: int, variables that the optimizer keeps for each weight: 1 for SGD with
            momentum, 2 for AdamW.

    Returns:
        dict of float bytes: `runtime`, `weights`, `activations`, and their sum `total`.
    """

    def forward(images):
        return detector(images, training=True)

    spec = tf.TensorSpec((*batch_shape, 3), "float32")
    graph = tf.function(forward, autograph=False).get_concrete_function(spec).graph
    activations = sum(
        output.shape.num_elements() * output.dtype.size
        for operation in graph.get_operations()
        if operation.type not in _WITHOUT_MEMORY
        for output in operation.outputs
        if output.dtype.is_floating and output.shape.is_fully_defined()
    )
    trainable = sum(int(np.prod(v.shape)) for v in detector.trainable_variables)
    weights = 4 * (detector.count_params() + (1 + slots) * trainable)
    return {
        "runtime": _RUNTIME_BYTES,
        "weights": float(weights),
        "activations": float(activations),
        "total": _RUNTIME_BYTES + weights + activations,
    }


def describe_memory(memory):
    """The dict of `estimate_step_memory` as a line of text."""
    parts = ", ".join(
        f"{name} {memory[name] / 1e9:.2f}"
        for name in ("activations", "weights", "runtime")
    )
    return (
        f"memory     about {memory['total'] / 1e9:.1f} GB for a step on the largest "
        f"batch ({parts})"
    )


def describe_run(run):
    """Model, data and schedule of a `Trainer` as lines of text."""
    training, data = run.config.training, run.config.data
    sides = "within" if data.keep_ratio else "stretched to"
    shapes = run.train_batches.canvas_shapes
    names = run.config.class_names
    num_validation = f"{len(run.val_dataset)} images" if run.val_dataset else ""
    lines = [
        f"model      {run.config.name}: {type(run.detector).__name__} on "
        f"{run.config.model.backbone.name}, {run.config.model.class_loss} loss, "
        f"{run.detector.count_params() / 1e6:.1f} M parameters, {training.precision}",
        *_describe_random(run.detector.backbone),
        f"strategy   {strategies.describe(run.strategy, training.batch_size)}",
        *([f"cluster    {run.cluster}"] if len(run.cluster.addresses) > 1 else []),
        f"train      {len(run.train_dataset)} images, {run.steps_per_epoch} steps "
        f"per epoch, {training.epochs} epochs",
        f"validation {num_validation or _describe_best(training)}",
        f"images     {sides} {data.image_size[0]}x{data.image_size[1]} pixels"
        + _describe_draws(data, run.transforms),
        f"graphs     at most {len(shapes)}, one per padded shape{_describe_jit(run)}: "
        + ", ".join(f"{height}x{width}" for height, width in shapes),
        f"classes    {len(names)}: {', '.join(names[:10])}"
        + (", ..." if len(names) > 10 else ""),
        f"learning   {_describe_learning(run)}",
        f"run        {run.run_dir}",
        "The loss may rise during the warm-up: the IoUs that the class loss is to "
        "learn grow with the boxes.",
    ]
    return "\n".join(lines)


def _describe_best(training):
    """What the best weights are without validation images."""
    best = "the averaged ones" if training.swa else "those of the least training loss"
    return f"none: no AP; the best weights are {best}"


def _describe_random(backbone):
    """A line on what the file of weights left out, if anything."""
    names = getattr(backbone, "layers_without_weights", ())
    if not names:
        return []
    norms = backbone.trainable_norms
    trained = "" if norms is None else f"; batch norms named {norms}... train"
    return [
        f"random     {len(names)} layers of the backbone, {names[0]} to {names[-1]}: the "
        f"file of weights has none for them{trained}"
    ]


def preview_run(run):
    """Data, batches and memory of a `Trainer` as lines of text."""
    training = run.config.training
    shapes = run.train_batches.shapes_of_epoch(0)
    replicas = strategies.num_replicas(run.strategy)
    largest = max(shapes, key=lambda shape: shape[0] * shape[1])
    memory = estimate_step_memory(
        run.detector,
        (training.batch_size // replicas, *largest),
        slots={"sgd": 1, "adamw": 2}[training.optimizer],
    )
    devices = f", on each of {replicas} devices" if replicas > 1 else ""
    return "\n".join(
        [
            describe_data(run.train_dataset),
            describe_batches(shapes, training.batch_size),
            describe_memory(memory) + devices,
        ]
    )


def _describe_jit(run):
    return (
        ", each compiled by XLA in its first step" if run.detector.jit_compile else ""
    )


def _describe_learning(run):
    training = run.config.training
    text = f"rate {run.learning_rate:g} "
    if training.scale_learning_rate:
        text += (
            f"({training.base_learning_rate:g} for {training.base_batch_size} images "
            f"per step, scaled to {run.effective_batch_size})"
        )
    else:
        text += f"(as given, not scaled to {run.effective_batch_size} images)"
    if training.accumulate_steps > 1:
        text += (
            f", an update every {training.accumulate_steps} batches: effective batch "
            f"{run.effective_batch_size}"
        )
    if training.schedule == "cosine_cycles":
        text += ", down to 1 % of it in each epoch"
    else:
        text += f", the first {training.warmup_steps} steps warm up, "
        drops = ", ".join(map(str, training.drop_epochs))
        is_cosine = training.schedule == "cosine"
        text += (
            "a cosine to the end"
            if is_cosine
            else f"x0.1 after epochs {drops or 'none'}"
        )
    if training.clip_norm is not None:
        text += f", gradient norm {training.clip_norm:g} at most"
    if training.ema_momentum is not None:
        text += f", weights averaged with momentum {training.ema_momentum:g}"
    return text + (", weights averaged over epochs" if training.swa else "")


def _describe_draws(data, transforms=None):
    """The random sizes and crops of training images, as the end of a line."""
    draws = []
    if transforms is not None:
        names = ", ".join(map(name_of, transforms))
        draws.append(f"transforms of your own ({names or 'none'})")
    elif data.augment != "flip":
        names = [
            type(each).__name__
            for each in augmentations(data.augment)
            if not each.is_idle
        ]
        preset = data.augment if isinstance(data.augment, str) else "own"
        draws.append(f"augmentations {preset!r} ({', '.join(names) or 'none'})")
    if data.oversample:
        draws.append(f"images of classes below {data.oversample:.0%} of them repeated")
    if data.scales:
        draws.append(f"one of {len(data.scales)} scales")
    if data.scale_range:
        low, high = data.scale_range
        draws.append(f"within {low[0]}x{low[1]} to {high[0]}x{high[1]}")
    if data.random_crop:
        draws.append(f"crops at {data.random_crop:g}")
    if data.cut_out and transforms is None:
        draws.append(f"cut-outs at {data.cut_out:g}")
    return "; in training " + ", ".join(draws) if draws else ""


def write_preview(config, dataset, folder, pages=8, *, transforms=None, max_boxes=None):
    """Draws the first batches of a training, `page_1.png`, ..., as the network sees them.

    Args:
        config: a `vfnet_tf.config.Config`.
        dataset: `DetectionDataset` to learn from.
        folder: path of a folder, which is made if it is missing.
        pages: int, batches to draw; an epoch with fewer gives fewer.
        transforms, max_boxes: as in `Trainer`.

    Returns:
        List of the paths.
    """
    batches = pipeline_of(
        config, dataset, training=True, transforms=transforms, max_boxes=max_boxes
    )
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, batch in enumerate(batches.take(pages), 1):
        drawn = draw_batch(
            batch,
            config.data.normalization,
            dataset.class_names,
            most=config.training.batch_size,
        )
        paths.append(folder / f"page_{number}.png")
        save_image(paths[-1], drawn)
    return paths


def pipeline_of(
    config, dataset, training, shares=None, transforms=None, max_boxes=None
):
    """`build_pipeline` with the settings of a `Config`.

    Args:
        config: `Config`.
        dataset: `DetectionDataset`.
        training: bool.
        shares: dict of `strategies.shares_of`, or None.
        transforms, max_boxes: as in `build_pipeline`.
    """
    return build_pipeline(
        dataset,
        config.data,
        batch_size=config.training.batch_size,
        training=training,
        seed=config.training.seed,
        epochs=config.training.epochs,
        transforms=transforms,
        max_boxes=max_boxes,
        **(shares or {}),
    )


def draw_batch(batch, normalization, class_names, most=8):
    """Draws the images of a batch as the network sees them, boxes on them.

    Args:
        batch: dict as `build_pipeline` gives it.
        normalization: the `Normalization` of its images, which is undone.
        class_names: K strings.
        most: int, images to draw.

    Returns:
        uint8 `[h, w, 3]`, a grid.
    """
    pictures = []
    for image, boxes, labels in zip(
        *(np.asarray(batch[name])[:most] for name in ("images", "boxes", "labels")),
        strict=True,
    ):
        kept = labels >= 0
        pixels = np.clip(normalization.inverse(image), 0, 255).round().astype("uint8")
        pictures.append(
            draw_detections(
                pixels, boxes[kept], labels[kept], class_names=class_names, min_side=1
            )
        )
    return draw_grid(pictures, columns=min(4, len(pictures)))
