from typing import Any, NamedTuple


class Assignment(NamedTuple):
    """Which ground-truth box each point learns, from any assigner.

    Attributes:
        is_positive: bool `[B, P]`.
        labels: int32 `[B, P]`, class of the box, -1 at negatives.
        boxes: float32 `[B, P, 4]` pixels, zeros at negatives.
        gt_indices: int32 `[B, P]`, row of the box in its image, -1 at negatives.
        is_valid: bool `[B, P]`, False beyond the image's own padded area.
    """

    is_positive: Any
    labels: Any
    boxes: Any
    gt_indices: Any
    is_valid: Any
