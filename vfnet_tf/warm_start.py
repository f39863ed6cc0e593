"""Initial weights from another run, which may have other classes."""

import pathlib

import numpy as np
from keras import ops

from vfnet_tf import config as configs
from vfnet_tf.builder import build_detector


def load_run_weights(detector, path, class_names=()):
    """Loads the weights of a run into a detector, which may have other classes.

    With other classes the classifier is left out, except for the rows of the class names
    that both have.

    Args:
        detector: `DenseDetector`, built.
        path: of a `.weights.h5`; a `config.json` beside it names its classes.
        class_names: names of the detector's labels.

    Returns:
        str, a line on what was left out; None if nothing was.

    Raises:
        ValueError: if anything but the classifier differs; the message names the first
            variable that does.
    """
    path = pathlib.Path(path)
    if not (path.parent / "config.json").is_file():
        detector.load_weights(path)
        return None
    earlier = configs.load_config(path.parent)
    is_same = earlier.class_names in ((), tuple(class_names))
    if is_same and earlier.model.num_classes == detector.num_classes:
        detector.load_weights(path)
        return None
    source = build_detector(earlier, weights=path)
    own, others = detector.weights, source.weights
    classifier = {id(v) for v in detector.head.class_predictor.weights}
    # The same architecture makes its variables in the same order.
    for new, old in zip(own, others, strict=False):
        is_free = id(new) in classifier
        if new.name != old.name or (not is_free and new.shape != old.shape):
            raise ValueError(
                "Only the classifier may differ from the run that training starts from. "
                f"Received: {new.path} {tuple(new.shape)} for {old.path} "
                f"{tuple(old.shape)} in {path}"
            )
    if len(own) != len(others):
        raise ValueError(
            "The detector must be of the kind that training starts from. Received: "
            f"{len(own)} variables for {len(others)} in {path}"
        )
    for new, old in zip(own, others, strict=True):
        if id(new) not in classifier:
            new.assign(old)
    shared = [
        (label, earlier.class_names.index(name))
        for label, name in enumerate(class_names)
        if name in earlier.class_names
    ]
    _copy_rows(detector, source, shared)
    names = ", ".join(class_names[label] for label, _ in shared)
    return (
        f"weights    {path} knows {source.num_classes} classes, this detector "
        f"{detector.num_classes}: all is loaded but the classifier"
        + (f", of that the rows of {names}" if shared else "")
    )


def _copy_rows(detector, source, labels):
    """Copies rows of the classifier; `labels` are pairs of (own, other) label."""
    own_labels = [own for own, _ in labels]
    other_labels = [other for _, other in labels]
    for new, old in zip(
        detector.head.class_predictor.weights,
        source.head.class_predictor.weights,
        strict=True,
    ):
        # The classes come last, those of one anchor after those of another.
        values, rows = (
            np.array(ops.convert_to_numpy(variable)).reshape(
                *variable.shape[:-1], -1, model.num_classes
            )
            for variable, model in ((new, detector), (old, source))
        )
        values[..., own_labels] = rows[..., other_labels]
        new.assign(values.reshape(new.shape))
