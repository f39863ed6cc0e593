"""From dense predictions to detections in the pixels of the original images."""

from keras import ops

from vfnet_tf.ops.boxes import clip_boxes
from vfnet_tf.ops.nms import best_places
from vfnet_tf.ops.nms_settings import check_settings


def best_of_each_level(ranks, tensors, level_sizes, limit):
    """Keeps at most `limit` points per level, those with the highest rank.

    Args:
        ranks: float32 `[B, P]`.
        tensors: list of `[B, P, ...]`.
        level_sizes: points of each level, ints or scalar tensors; they add up to P.
        limit: int.

    Returns:
        list of `[B, N, ...]`.
    """
    kept = []
    start = 0
    for size in level_sizes:
        level = [tensor[:, start : start + size] for tensor in tensors]
        if not isinstance(size, int) or size > limit:
            count = limit if isinstance(size, int) else ops.minimum(limit, size)
            index = best_places(ranks[:, start : start + size], count)
            level = [
                ops.take_along_axis(tensor, index[..., None], axis=1)
                for tensor in level
            ]
        start = start + size
        kept.append(level)
    return [ops.concatenate(parts, axis=1) for parts in zip(*kept, strict=True)]


def select_candidates(
    boxes,
    scores,
    level_sizes,
    image_size,
    scale=None,
    flipped=None,
    candidates_per_level=1000,
    factors=None,
    score_threshold=0.0,
    clip_margin=0.0,
):
    """The candidates of NMS: selects per level, clips, mirrors back and scales boxes.

    Args:
        boxes: float32 `[B, P, 4]`, pixels of the network input.
        scores: float32 `[B, P, K]` in [0, 1].
        level_sizes: points of each level.
        image_size: `[B, 2]`, `(height, width)` of the images without padding; boxes are
            clipped to it.
        scale: `[B, 2]`, `(vertical, horizontal)` factors that the images were resized
            by, or None. Boxes are divided by them.
        flipped: bool, scalar or `[B]`: images were mirrored left and right, before they
            were padded; None means none were.
        candidates_per_level: int, points per level at most.
        factors: float32 `[B, P]` in [0, 1], centerness, or None. It ranks points
            together with the scores and multiplies those above `score_threshold`; the
            others become 0: docs/parity.md, S25.
        score_threshold: float, of no effect without `factors`.
        clip_margin: boxes are clipped to `image_size` less so many pixels.

    Returns:
        `boxes` `[B, N, 4]`, in pixels of the original images where `scale` is given,
        and `scores` `[B, N, K]`.

    Raises:
        ValueError: for `candidates_per_level` out of range.
    """
    check_settings(candidates_per_level=candidates_per_level)
    ranks, tensors = ops.max(scores, axis=-1), [boxes, scores]
    if factors is not None:
        ranks, tensors = ranks * factors, [boxes, scores, factors[..., None]]
    boxes, scores, *factors = best_of_each_level(
        ranks, tensors, level_sizes, candidates_per_level
    )
    for factor in factors:
        scores = ops.where(scores > score_threshold, scores * factor, 0.0)
    boxes = clip_boxes(boxes, ops.cast(image_size, boxes.dtype) - clip_margin)
    if flipped is not None:
        width = ops.cast(image_size, boxes.dtype)[:, None, 1]
        x1, y1, x2, y2 = (boxes[..., side] for side in range(4))
        mirrored = ops.stack([width - x2, y1, width - x1, y2], axis=-1)
        flipped = ops.reshape(ops.cast(flipped, "bool"), (-1, 1, 1))
        boxes = ops.where(flipped, mirrored, boxes)
    if scale is not None:
        scale = ops.cast(scale, "float32")[:, None]
        # PyTorch has no negative steps, [..., ::-1].
        scale = ops.flip(scale, axis=-1)
        boxes = boxes / ops.concatenate([scale, scale], axis=-1)
    return boxes, scores


def merge_candidates(candidates):
    """Joins the candidates of several views of the same images.

    Args:
        candidates: list of pairs (boxes `[B, N, 4]`, scores `[B, N, K]`), one for each
            view, all in pixels of the original images.

    Returns:
        The boxes and the scores of all views, for one NMS.
    """
    boxes, scores = zip(*candidates, strict=True)
    return ops.concatenate(boxes, axis=1), ops.concatenate(scores, axis=1)
