"""Class-wise non-maximum suppression, hard and soft, with padded results."""

import keras
import numpy as np
from keras import ops

from vfnet_tf.ops.boxes import box_area, elementwise_iou
from vfnet_tf.ops.kernels import tensorflow_kernels
from vfnet_tf.ops.nms_settings import check_nms, check_settings
from vfnet_tf.ops.shapes import sizes_of

#: Floor of a union in square pixels, below which only boxes without area are.
_TINY = float(np.finfo("float32").tiny)

#: Whole numbers up to this are exact in float32.
_EXACT = 2**24

# (box, class) pairs per wanted detection that are tried before all pairs.
_POOL_PER_DETECTION = 40
_REMOVED = -1.0


def suppress(
    boxes,
    scores,
    iou_threshold,
    score_threshold,
    max_detections,
    nms="hard",
    sigma=0.5,
    min_score=1e-3,
):
    """`class_wise_nms` or `class_wise_soft_nms`, by name.

    Args:
        boxes, scores, iou_threshold, score_threshold, max_detections: see there.
        nms: `"hard"`, `"soft_linear"` or `"soft_gaussian"`.
        sigma, min_score: of soft-NMS.

    Raises:
        ValueError: for another `nms`.
    """
    arguments = (boxes, scores, iou_threshold, score_threshold, max_detections)
    if check_nms(nms) == "hard":
        return class_wise_nms(*arguments)
    method = nms.removeprefix("soft_")
    return class_wise_soft_nms(*arguments, method, sigma, min_score)


def class_wise_nms(boxes, scores, iou_threshold, score_threshold, max_detections):
    """Greedy NMS within each class, then the best `max_detections` of all classes.

    Every (box, class) pair with a score **above** `score_threshold` takes part; NaN is
    not above it. A box is dropped if its IoU with a better one of its class is **above**
    `iou_threshold`. Of equal scores the lower box index comes first, then the lower
    class, on every backend. An inverted box (x2 < x1 or y2 < y1) becomes one without
    area; such a box, and one with NaN, overlaps nothing.

    Args:
        boxes: float32 `[B, N, 4]` pixels, or any other unit; shared by the classes.
        scores: float32 `[B, N, K]` in [0, 1].
        iou_threshold: float or scalar tensor in [0, 1].
        score_threshold: float or scalar tensor in [0, 1].
        max_detections: int >= 1, D.

    Returns:
        dict with `boxes` float32 `[B, D, 4]` (zeros after the last), `scores` float32
        `[B, D]` (descending, zeros), `labels` int32 `[B, D]` (-1) and `num_detections`
        int32 `[B]`.

    Raises:
        ValueError: for settings out of range, or shapes that do not fit.

    >>> boxes = ops.array([[[0.0, 0.0, 8.0, 8.0], [0.0, 0.0, 8.0, 9.0]]])
    >>> found = class_wise_nms(boxes, ops.array([[[0.6], [0.8]]]), 0.5, 0.05, 3)
    >>> ops.convert_to_numpy(found["scores"])
    array([[0.8, 0. , 0. ]], dtype=float32)
    """
    check_settings(
        iou_threshold=iou_threshold,
        score_threshold=score_threshold,
        max_detections=max_detections,
    )
    boxes, scores = _prepare(boxes, scores)
    nms = _combined_nms if tensorflow_kernels() else _looped_nms
    return nms(boxes, scores, iou_threshold, score_threshold, int(max_detections))


def best_places(ranks, count):
    """Indices of the highest ranks; of equals the first ones, NaN last.

    Args:
        ranks: float `[B, N]`, not negative.
        count: int or scalar tensor, at most N.

    Returns:
        int32 `[B, count]`, ascending, so that NMS, which takes equal scores in the order
        of indices, does so as without the selection.
    """
    ranks = ops.where(ranks >= 0, ranks, -1.0)
    if keras.backend.backend() == "torch":  # its `topk` takes any of equals
        index = ops.argsort(-ranks, axis=-1)[:, :count]
    else:
        _, index = ops.top_k(ranks, count)
    return ops.sort(ops.cast(index, "int32"), axis=-1)


def _prepare(boxes, scores):
    """Boxes and scores as float32, no box inverted, at least one row; checks shapes."""
    boxes = ops.convert_to_tensor(boxes, dtype="float32")
    scores = ops.convert_to_tensor(scores, dtype="float32")
    of_boxes, of_scores = tuple(boxes.shape), tuple(scores.shape)
    fits = len(of_boxes) == len(of_scores) == 3 and of_boxes[-1] in (4, None)
    if not fits or any(
        None not in sides and sides[0] != sides[1]
        for sides in zip(of_boxes[:2], of_scores[:2], strict=True)
    ):
        raise ValueError(
            "Boxes must be [B, N, 4] and scores [B, N, K]. Received: boxes of shape "
            f"{of_boxes}, scores of shape {of_scores}"
        )
    if of_scores[1] == 0:
        boxes, scores = (ops.pad(x, ((0, 0), (0, 1), (0, 0))) for x in (boxes, scores))
    low, high = boxes[..., :2], boxes[..., 2:]
    # `maximum` would remove NaN.
    return ops.concatenate([low, ops.where(high < low, low, high)], axis=-1), scores


def _combined_nms(boxes, scores, iou_threshold, score_threshold, max_detections):
    """NMS by TensorFlow's kernel, which runs again, by rank, where scores are equal."""
    import tensorflow as tf

    def suppress(scores, score_threshold, limit):
        return tf.image.combined_non_max_suppression(
            boxes[:, :, None],
            scores,
            max_output_size_per_class=limit,
            max_total_size=limit,
            iou_threshold=iou_threshold,
            score_threshold=score_threshold,
            clip_boxes=False,
        )

    # One more, whose score may equal the last one's.
    found = suppress(scores, score_threshold, max_detections + 1)

    def as_found():
        count = tf.minimum(found.valid_detections, max_detections)
        kept = (found.nmsed_boxes, found.nmsed_scores, found.nmsed_classes)
        return (*(x[:, :max_detections] for x in kept), count)

    def rank(count):
        """NMS whose scores are the pairs' ranks, no two of which are equal."""
        batch, num_boxes, num_classes = sizes_of(scores)
        size = num_boxes * num_classes
        # `top_k` has no place for NaN.
        flat = tf.where(scores > score_threshold, scores, _REMOVED)
        flat = tf.reshape(flat, (batch, size))
        count = tf.minimum(count, size)
        best = tf.math.top_k(flat, count)  # of equals the lower index
        takes_part = best.values > 0
        keys = tf.where(takes_part, _EXACT - tf.range(count), 0)
        pairs = best.indices + tf.range(batch)[:, None] * size
        keys = tf.scatter_nd(
            tf.reshape(pairs, (-1, 1)),
            tf.reshape(tf.cast(keys, "float32"), (-1,)),
            [batch * size],
        )
        keys = tf.reshape(keys, (batch, num_boxes, num_classes))
        chosen = suppress(keys, 0.0, max_detections)
        is_chosen = chosen.nmsed_scores > 0
        places = _EXACT - tf.cast(chosen.nmsed_scores, "int32")
        kept = tf.gather(best.values, tf.where(is_chosen, places, 0), batch_dims=1)
        # Either all pairs that take part were tried, or enough were found.
        is_settled = tf.logical_or(tf.logical_not(takes_part[:, -1]), is_chosen[:, -1])
        found = (chosen.nmsed_boxes, kept, chosen.nmsed_classes)
        return (*found, chosen.valid_detections), tf.reduce_all(is_settled)

    def as_ranked():
        found, is_settled = rank(_POOL_PER_DETECTION * max_detections)
        return tf.cond(is_settled, lambda: found, lambda: rank(_EXACT)[0])

    # Without equal scores among the kept boxes the kernel's order was right.
    is_found = found.nmsed_scores > 0
    is_next = found.nmsed_scores[:, 1:] == found.nmsed_scores[:, :-1]
    of_class = tf.gather(
        tf.transpose(scores, (0, 2, 1)),
        tf.cast(found.nmsed_classes, "int32"),
        batch_dims=1,
    )
    equals = tf.math.count_nonzero(of_class == found.nmsed_scores[..., None], axis=-1)
    has_equals = tf.logical_or(
        tf.reduce_any(tf.logical_and(is_found[:, 1:], is_next)),
        tf.reduce_any(tf.logical_and(is_found, equals > 1)),
    )
    return _padded(*tf.cond(has_equals, as_ranked, as_found))


def _looped_nms(boxes, scores, iou_threshold, score_threshold, max_detections):
    """NMS in `keras.ops`: takes the best pair left, D times."""
    batch, num_boxes, num_classes = scores.shape
    scores = ops.where(scores > score_threshold, scores, -1.0)
    classes = ops.arange(num_classes, dtype="int32")
    kept_boxes, kept_scores, kept_labels = [], [], []
    for _ in range(max_detections):
        flat = ops.reshape(scores, (batch, num_boxes * num_classes))
        best = ops.cast(ops.argmax(flat, axis=-1), "int32")
        score = ops.take_along_axis(flat, best[:, None], axis=1)[:, 0]
        box_index, label = best // num_classes, best % num_classes
        box = ops.take_along_axis(boxes, box_index[:, None, None], axis=1)
        overlaps = elementwise_iou(boxes, box, _TINY) > iou_threshold
        own = ops.arange(num_boxes, dtype="int32") == box_index[:, None]
        dropped = ops.logical_and(
            ops.logical_or(overlaps, own)[..., None],
            classes == label[:, None, None],
        )
        scores = ops.where(dropped, -1.0, scores)
        kept_boxes.append(box[:, 0])
        kept_scores.append(score)
        kept_labels.append(label)
    kept_scores = ops.stack(kept_scores, axis=1)
    return _padded(
        ops.stack(kept_boxes, axis=1),
        kept_scores,
        ops.stack(kept_labels, axis=1),
        ops.sum(ops.cast(kept_scores > 0, "int32"), axis=-1),
    )


def class_wise_soft_nms(
    boxes,
    scores,
    iou_threshold,
    score_threshold,
    max_detections,
    method="linear",
    sigma=0.5,
    min_score=1e-3,
):
    """Soft-NMS within each class (Bodla et al., ICCV 2017; docs/parity.md, S27).

    Every (box, class) pair with a score **above** `score_threshold` takes part. The best
    one left is taken, and the scores of the others of its class are multiplied by

        linear      1 - IoU  where IoU >= iou_threshold, else 1
        gaussian    exp(-IoU**2 / sigma)

    and pairs **below** `min_score` are removed, until `max_detections` are taken. The
    score threshold is not applied again. Of equal scores the lower box index comes
    first, then the lower class; the official order depends on how its list was
    rearranged by removals. Boxes are taken as in `class_wise_nms`.

    Args:
        boxes: float32 `[B, N, 4]` pixels, shared by the classes.
        scores: float32 `[B, N, K]` in [0, 1].
        iou_threshold: float or scalar tensor in [0, 1], of the linear method.
        score_threshold: float or scalar tensor in [0, 1].
        max_detections: int >= 1, D.
        method: `"linear"` or `"gaussian"`.
        sigma: float > 0, of the Gaussian.
        min_score: float >= 0.

    Returns:
        dict, see `class_wise_nms`, in the order of selection; `scores` are decayed and
        descending.

    Raises:
        ValueError: for another `method`, settings out of range, or shapes that do not
            fit.
    """
    check_settings(
        iou_threshold=iou_threshold,
        score_threshold=score_threshold,
        max_detections=max_detections,
        sigma=sigma,
        min_score=min_score,
    )
    max_detections = int(max_detections)
    boxes, scores = _prepare(boxes, scores)
    if method not in ("linear", "gaussian"):
        raise ValueError(
            f"`method` must be 'linear' or 'gaussian'. Received: method={method!r}"
        )

    def weigh(ious):
        if method == "linear":
            return ops.where(ious >= iou_threshold, 1.0 - ious, 1.0)
        return ops.exp(-ops.square(ious) / sigma)

    batch, num_boxes, num_classes = sizes_of(scores)
    scores = ops.where(scores > score_threshold, scores, _REMOVED)
    scores = ops.reshape(scores, (batch, num_boxes * num_classes))

    def select(pairs):
        """Soft-NMS among the pairs, `[B, S]` places in `scores`, ascending."""
        pair_boxes = ops.take_along_axis(boxes, (pairs // num_classes)[..., None], 1)
        pair_scores = ops.take_along_axis(scores, pairs, axis=1)
        return _select_softly(
            pair_boxes,
            pair_scores,
            pairs % num_classes,
            max_detections,
            weigh,
            min_score,
        )

    def select_from_all():
        places = ops.arange(num_boxes * num_classes, dtype="int32")
        return select(ops.broadcast_to(places, sizes_of(scores)))

    # Scores only fall, so a pair whose first score is below that of the last one taken
    # was never the best. A pool of the best pairs therefore gives the same as all pairs
    # if no pair outside has a higher score than its last one. All 320,000 pairs take ten
    # times as long.
    num_pairs = num_boxes * num_classes
    pool_size = _POOL_PER_DETECTION * max_detections
    if not isinstance(num_pairs, int):
        pool_size = ops.minimum(pool_size, num_pairs)
    elif num_pairs <= pool_size:
        return select_from_all()
    # Only the indices of `top_k`: if values are read, XLA on CPU sorts everything, ten
    # times as slowly.
    _, pool = ops.top_k(scores, pool_size)
    # In ascending order, since `argmax` takes the first of equals.
    pool = ops.sort(ops.cast(pool, "int32"), axis=-1)
    found = select(pool)
    best_outside = ops.min(ops.take_along_axis(scores, pool, axis=1), axis=-1)
    is_empty_outside = ops.logical_or(best_outside < 0, num_pairs <= pool_size)
    is_settled = ops.logical_or(is_empty_outside, best_outside < found["scores"][:, -1])
    return ops.cond(ops.all(is_settled), lambda: found, select_from_all)


def _select_softly(boxes, scores, labels, max_detections, weigh, min_score):
    """Soft-NMS of S pairs, whose scores are negative if they do not take part."""
    # Split here, not in each of the D steps. A box with NaN overlaps nothing.
    is_finite = ops.all(ops.isfinite(boxes), axis=-1, keepdims=True)
    finite = ops.where(is_finite, boxes, 0.0)
    x1, y1, x2, y2 = (finite[..., side] for side in range(4))
    areas = box_area(finite)
    columns = ops.stack([x1, y1, x2, y2, areas], axis=-1)
    places = ops.arange(sizes_of(scores)[1], dtype="int32")
    slots = ops.arange(max_detections, dtype="int32")

    def is_unfinished(step, scores, kept, kept_scores):
        return ops.logical_and(step < max_detections, ops.any(scores >= 0))

    def take_best(step, scores, kept, kept_scores):
        best = ops.cast(ops.argmax(scores, axis=-1), "int32")[:, None]
        score = ops.take_along_axis(scores, best, axis=1)
        label = ops.take_along_axis(labels, best, axis=1)
        row = ops.take_along_axis(columns, best[..., None], axis=1)
        # `elementwise_iou` would take twice as long.
        width = ops.minimum(x2, row[..., 2]) - ops.maximum(x1, row[..., 0])
        height = ops.minimum(y2, row[..., 3]) - ops.maximum(y1, row[..., 1])
        common = ops.maximum(width, 0.0) * ops.maximum(height, 0.0)
        ious = common / ops.maximum(areas + row[..., 4] - common, _TINY)
        decayed = ops.where(labels == label, scores * weigh(ious), scores)
        is_gone = ops.logical_or(places == best, decayed < min_score)
        is_gone = ops.logical_or(is_gone, scores < 0)  # -1 times a factor of 0 is 0
        is_now = slots == step
        return (
            step + 1,
            ops.where(is_gone, _REMOVED, decayed),
            ops.where(is_now, best, kept),
            ops.where(is_now, score, kept_scores),
        )

    shape = (sizes_of(scores)[0], max_detections)
    _, _, kept, kept_scores = ops.while_loop(
        is_unfinished,
        take_best,
        (
            ops.convert_to_tensor(0, dtype="int32"),
            scores,
            ops.zeros(shape, dtype="int32"),
            ops.full(shape, _REMOVED, dtype="float32"),
        ),
    )
    return _padded(
        ops.take_along_axis(boxes, kept[..., None], axis=1),
        kept_scores,
        ops.take_along_axis(labels, kept, axis=1),
        ops.sum(ops.cast(kept_scores >= 0, "int32"), axis=-1),
    )


def _padded(boxes, scores, labels, num_detections):
    slots = ops.arange(scores.shape[1], dtype="int32")
    is_kept = slots < num_detections[:, None]
    return {
        "boxes": ops.where(is_kept[..., None], boxes, 0.0),
        "scores": ops.where(is_kept, scores, 0.0),
        "labels": ops.where(is_kept, ops.cast(labels, "int32"), -1),
        "num_detections": ops.cast(num_detections, "int32"),
    }
