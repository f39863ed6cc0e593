"""Class-wise non-maximum suppression, hard and soft, with padded results."""

from keras import ops

from vfnet_tf.ops.boxes import box_area, elementwise_iou
from vfnet_tf.ops.kernels import tensorflow_kernels
from vfnet_tf.ops.shapes import sizes_of

#: What `suppress` knows.
NMS_KINDS = ("hard", "soft_linear", "soft_gaussian")

# Pairs that soft-NMS looks at for each detection asked for, before it looks at all.
_POOL_PER_DETECTION = 40
_REMOVED = -1.0


def check_nms(nms):
    """Returns `nms` if it is one of `NMS_KINDS`.

    Raises:
        ValueError: if it is not.
    """
    if nms not in NMS_KINDS:
        raise ValueError(f"`nms` must be one of {NMS_KINDS}. Received: nms={nms!r}")
    return nms


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

    Every (box, class) pair with a score **above** `score_threshold` takes part; a box is
    dropped if its IoU with a better one of its class is **above** `iou_threshold`.

    Args:
        boxes: float32 `[B, N, 4]` pixels, shared by the classes.
        scores: float32 `[B, N, K]` in [0, 1].
        iou_threshold: float or scalar tensor.
        score_threshold: float or scalar tensor.
        max_detections: int, D.

    Returns:
        dict with `boxes` float32 `[B, D, 4]` (zeros after the last), `scores` float32
        `[B, D]` (descending, zeros), `labels` int32 `[B, D]` (-1) and `num_detections`
        int32 `[B]`.

    >>> boxes = ops.array([[[0.0, 0.0, 8.0, 8.0], [0.0, 0.0, 8.0, 9.0]]])
    >>> found = class_wise_nms(boxes, ops.array([[[0.6], [0.8]]]), 0.5, 0.05, 3)
    >>> ops.convert_to_numpy(found["scores"])
    array([[0.8, 0. , 0. ]], dtype=float32)
    """
    if tensorflow_kernels():
        return _combined_nms(
            boxes, scores, iou_threshold, score_threshold, max_detections
        )
    return _looped_nms(boxes, scores, iou_threshold, score_threshold, max_detections)


def _combined_nms(boxes, scores, iou_threshold, score_threshold, max_detections):
    import tensorflow as tf

    found = tf.image.combined_non_max_suppression(
        boxes[:, :, None],
        scores,
        max_output_size_per_class=max_detections,
        max_total_size=max_detections,
        iou_threshold=iou_threshold,
        score_threshold=score_threshold,
        clip_boxes=False,
    )
    return _padded(
        found.nmsed_boxes,
        found.nmsed_scores,
        found.nmsed_classes,
        found.valid_detections,
    )


def _looped_nms(boxes, scores, iou_threshold, score_threshold, max_detections):
    """The same in `keras.ops`: takes the best pair left, D times, without a sort."""
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
        overlaps = elementwise_iou(boxes, box) > iou_threshold
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
    """Soft-NMS within each class (Bodla et al., ICCV 2017), fact S27.

    Every (box, class) pair with a score **above** `score_threshold` takes part. The best
    one left is taken, and the scores of the others of its class are multiplied by

        linear      1 - IoU  where IoU >= iou_threshold, else 1
        gaussian    exp(-IoU**2 / sigma)

    and pairs **below** `min_score` are removed, until `max_detections` are taken. The
    score threshold is not applied again. Of equal scores the lower box index comes
    first, then the lower class; the official order depends on how its list was
    rearranged by removals.

    Args:
        boxes: float32 `[B, N, 4]` pixels, shared by the classes.
        scores: float32 `[B, N, K]` in [0, 1].
        iou_threshold: float or scalar tensor, of the linear method.
        score_threshold: float or scalar tensor.
        max_detections: int, D.
        method: `"linear"` or `"gaussian"`.
        sigma: float > 0, of the Gaussian.
        min_score: float >= 0.

    Returns:
        dict as of `class_wise_nms`, in the order of selection; `scores` are decayed and
        descending.

    Raises:
        ValueError: for another `method`, or `sigma` or `min_score` out of range.
    """
    if method not in ("linear", "gaussian"):
        raise ValueError(
            f"`method` must be 'linear' or 'gaussian'. Received: method={method!r}"
        )
    if not sigma > 0 or not min_score >= 0:
        raise ValueError(
            "`sigma` must be > 0 and `min_score` >= 0. "
            f"Received: sigma={sigma}, min_score={min_score}"
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

    # Scores only fall, so a pair whose score at the start is below that of the last
    # one taken was never the best: a pool of the best pairs gives what all would give,
    # unless it says otherwise. All 320,000 cost ten times as much.
    num_pairs = num_boxes * num_classes
    pool_size = _POOL_PER_DETECTION * max_detections
    if not isinstance(num_pairs, int):
        pool_size = ops.minimum(pool_size, num_pairs)
    elif num_pairs <= pool_size:
        return select_from_all()
    # Its places only: XLA on CPUs sorts all, ten times as slow, if values are read.
    _, pool = ops.top_k(scores, pool_size)
    # In the order of places, since `argmax` takes the first of equals.
    pool = ops.sort(ops.cast(pool, "int32"), axis=-1)
    found = select(pool)
    best_outside = ops.min(ops.take_along_axis(scores, pool, axis=1), axis=-1)
    is_empty_outside = ops.logical_or(best_outside < 0, num_pairs <= pool_size)
    is_settled = ops.logical_or(is_empty_outside, best_outside < found["scores"][:, -1])
    return ops.cond(ops.all(is_settled), lambda: found, select_from_all)


def _select_softly(boxes, scores, labels, max_detections, weigh, min_score):
    """Soft-NMS of pairs.

    Args:
        boxes: float32 `[B, S, 4]`.
        scores: float32 `[B, S]`, negative for pairs that do not take part.
        labels: int32 `[B, S]`.
        max_detections: int, D.
        weigh: function from IoUs to factors, float32 `[B, S]`.
        min_score: float.
    """
    # Split once and not in each of the D steps, which are many small operations.
    x1, y1, x2, y2 = (boxes[..., side] for side in range(4))
    areas = box_area(boxes)
    columns = ops.stack([x1, y1, x2, y2, areas], axis=-1)
    places = ops.arange(sizes_of(scores)[1], dtype="int32")
    slots = ops.arange(max_detections, dtype="int32")

    def goes_on(step, scores, kept, kept_scores):
        return ops.logical_and(step < max_detections, ops.any(scores >= 0))

    def take_best(step, scores, kept, kept_scores):
        best = ops.cast(ops.argmax(scores, axis=-1), "int32")[:, None]
        score = ops.take_along_axis(scores, best, axis=1)
        label = ops.take_along_axis(labels, best, axis=1)
        row = ops.take_along_axis(columns, best[..., None], axis=1)
        # `elementwise_iou`, in half the time.
        width = ops.minimum(x2, row[..., 2]) - ops.maximum(x1, row[..., 0])
        height = ops.minimum(y2, row[..., 3]) - ops.maximum(y1, row[..., 1])
        common = ops.maximum(width, 0.0) * ops.maximum(height, 0.0)
        ious = common / ops.maximum(areas + row[..., 4] - common, 1e-6)
        decayed = ops.where(labels == label, scores * weigh(ious), scores)
        is_gone = ops.logical_or(places == best, decayed < min_score)
        is_gone = ops.logical_or(is_gone, scores < 0)  # -1 x 0 is no longer negative
        is_now = slots == step
        return (
            step + 1,
            ops.where(is_gone, _REMOVED, decayed),
            ops.where(is_now, best, kept),
            ops.where(is_now, score, kept_scores),
        )

    shape = (sizes_of(scores)[0], max_detections)
    _, _, kept, kept_scores = ops.while_loop(
        goes_on,
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
