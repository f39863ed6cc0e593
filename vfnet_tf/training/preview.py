"""What a training would work on, without a step of it: data, batches, memory."""

import collections

import numpy as np
import tensorflow as tf

# COCO's sizes: areas up to 32^2 and 96^2 pixels.
_AREAS = {"small": 32**2, "medium": 96**2, "large": float("inf")}
# A process that has imported TensorFlow and Keras and built a graph.
_RUNTIME_BYTES = 550e6
# Operations that hand on what they were given, or a weight.
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
    """Memory of a process that makes a training step, without making it.

    Weights, gradients and the optimizer's slots, and all that the forward pass computes,
    since the backward pass needs it. The process of a step of VFNet-ResNet-50 on 2x256x320
    was estimated at 2.0 GB and measured at 2.03 GB (docs/results.md).

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
    """What `estimate_step_memory` returned, as a line of text."""
    parts = ", ".join(
        f"{name} {memory[name] / 1e9:.2f}"
        for name in ("activations", "weights", "runtime")
    )
    return (
        f"memory     about {memory['total'] / 1e9:.1f} GB for a step on the largest "
        f"batch ({parts})"
    )
