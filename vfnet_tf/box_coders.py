"""The meaning of a head's four numbers: distances from a point, or anchor deltas.

A coder takes the priors of a detector, a dict of float32 `"points"` `[P, 2]`, `"strides"`
`[P]` and, where a detector has them, `"anchors"` `[P, 4]`, all in pixels.
"""

import math

import keras
from keras import ops

from vfnet_tf.ops.boxes import boxes_to_distances, distances_to_boxes, square_anchors

#: Largest factor between the sides of an anchor and of its box: docs/parity.md, S24.
MAX_RATIO = 1000 / 16


@keras.saving.register_keras_serializable("vfnet_tf")
class DistanceCoder:
    """Distances from a point to the sides of its box (FCOS, Eq. 1).

    Args:
        activation: `"relu"` or `"exp"`, from a prediction to a distance that is not
            negative.
        unit: float, number of strides in one unit of distance.
        limits: (smallest, largest) encoded distance in these units, or None.
    """

    def __init__(self, activation="relu", unit=1.0, limits=None):
        if activation not in ("relu", "exp"):
            raise ValueError(
                "`activation` must be 'relu' or 'exp'. "
                f"Received: activation={activation!r}"
            )
        self.activation = activation
        self.unit = unit
        self.limits = limits if limits is None else tuple(limits)

    def decode(self, predictions, priors):
        """Predictions float32 `[B, P, 4]` to boxes `[B, P, 4]` in pixels, not clipped."""
        distances = (ops.relu if self.activation == "relu" else ops.exp)(predictions)
        units = (priors["strides"] * self.unit)[:, None]
        return distances_to_boxes(priors["points"], distances * units)

    def encode(self, boxes, priors):
        """Boxes `[B, P, 4]` in pixels to the predictions that decode to them.

        Under `"exp"` a distance must be positive, or `limits` must be set.
        """
        units = (priors["strides"] * self.unit)[:, None]
        distances = boxes_to_distances(priors["points"], boxes) / units
        if self.limits is not None:
            # Not `clip`, which on PyTorch rounds its limits to floatx.
            low, high = self.limits
            distances = ops.minimum(ops.maximum(distances, low), high)
        return distances if self.activation == "relu" else ops.log(distances)

    def get_config(self):
        return {
            "activation": self.activation,
            "unit": self.unit,
            "limits": self.limits,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@keras.saving.register_keras_serializable("vfnet_tf")
class DeltaCoder:
    """Deltas `(dx, dy, dw, dh)` of an anchor (Girshick et al., CVPR 2014, App. C).

        center = anchor center + (dx, dy) * anchor size
        size = anchor size * exp(dw, dh)

    Args:
        stds: four floats; encoded deltas are divided by them.
        anchor_scale: float, side of square anchors about the points in strides; None
            takes the `"anchors"` of the priors.
    """

    def __init__(self, stds=(1.0, 1.0, 1.0, 1.0), anchor_scale=None):
        if len(stds) != 4 or min(stds) <= 0:
            raise ValueError(f"`stds` must be 4 floats > 0. Received: stds={stds}")
        self.stds = tuple(stds)
        self.anchor_scale = anchor_scale

    def _centers_and_sizes(self, priors):
        if self.anchor_scale is None:
            anchors = priors["anchors"]
        else:
            anchors = square_anchors(
                priors["points"], priors["strides"], self.anchor_scale
            )
        return centers_and_sizes(anchors)

    def decode(self, predictions, priors):
        """Deltas float32 `[B, P, 4]` to boxes `[B, P, 4]` in pixels, not clipped.

        Widths and heights grow and shrink by a factor of at most 1000 / 16.
        """
        centers, sizes = self._centers_and_sizes(priors)
        deltas = predictions * ops.convert_to_tensor(self.stds, dtype="float32")
        centers = centers + deltas[..., :2] * sizes
        limit = math.log(MAX_RATIO)
        half = sizes * ops.exp(ops.clip(deltas[..., 2:], -limit, limit)) / 2
        return ops.concatenate([centers - half, centers + half], axis=-1)

    def encode(self, boxes, priors):
        """Boxes `[B, P, 4]` in pixels with positive sides to deltas `[B, P, 4]`."""
        centers, sizes = self._centers_and_sizes(priors)
        box_centers, box_sizes = centers_and_sizes(boxes)
        shifts = (box_centers - centers) / sizes
        deltas = ops.concatenate([shifts, ops.log(box_sizes / sizes)], axis=-1)
        return deltas / ops.convert_to_tensor(self.stds, dtype="float32")

    def get_config(self):
        return {"stds": self.stds, "anchor_scale": self.anchor_scale}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def centers_and_sizes(boxes):
    """Boxes `[..., 4]` to `(x, y)` centres and `(width, height)`, each `[..., 2]`."""
    centers = (boxes[..., :2] + boxes[..., 2:]) / 2
    return centers, boxes[..., 2:] - boxes[..., :2]
