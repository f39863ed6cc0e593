"""Learning rates by step."""

import math

import keras
from keras import ops


@keras.saving.register_keras_serializable("vfnet_tf")
class WarmupStepSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up, then a drop at each boundary.

        rate(t) = base_lr * factor ** n(t) * w(t)
        n(t)    = number of boundaries <= t
        w(t)    = warmup_ratio + (1 - warmup_ratio) * min(t / warmup_steps, 1)

    A drop inside the warm-up counts too, since a small dataset has short epochs. The
    official schedules: docs/parity.md, S35.

    Args:
        base_lr: float > 0, the rate after the warm-up.
        warmup_steps: int >= 0; 0 is no warm-up.
        warmup_ratio: float in (0, 1], where the warm-up starts.
        boundaries: ints >= 0 in order, the first steps (counted from 0) at a
            lower rate. Epoch e begins at step `e * steps_per_epoch`.
        factor: float in (0, 1], of each drop.
        name: str.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        base_lr,
        warmup_steps=500,
        warmup_ratio=0.1,
        boundaries=(),
        factor=0.1,
        name="WarmupStepSchedule",
    ):
        super().__init__()
        boundaries = [int(boundary) for boundary in boundaries]
        _check("base_lr", base_lr, base_lr > 0, "> 0")
        _check("warmup_steps", warmup_steps, warmup_steps >= 0, ">= 0")
        _check("warmup_ratio", warmup_ratio, 0 < warmup_ratio <= 1, "in (0, 1]")
        is_ordered = (
            boundaries == sorted(boundaries) and min(boundaries, default=0) >= 0
        )
        _check("boundaries", boundaries, is_ordered, "steps >= 0 in order")
        _check("factor", factor, 0 < factor <= 1, "in (0, 1]")
        self.base_lr = base_lr
        self.warmup_steps = warmup_steps
        self.warmup_ratio = warmup_ratio
        self.boundaries = boundaries
        self.factor = factor
        self.name = name

    def __call__(self, step):
        """The rate of a step.

        Args:
            step: integer scalar or array, counted from 0.

        Returns:
            float32 of the same shape.
        """
        # float32 counts steps exactly up to 2**24.
        step = ops.cast(step, "float32")
        rate = self.base_lr * self._warmup_factor(step)
        for boundary in self.boundaries:
            rate = ops.where(step >= boundary, rate * self.factor, rate)
        return rate

    def _warmup_factor(self, step):
        if self.warmup_steps == 0:
            return ops.ones_like(step)
        progress = ops.minimum(step / self.warmup_steps, 1.0)
        return self.warmup_ratio + (1.0 - self.warmup_ratio) * progress

    def get_config(self):
        names = (
            "base_lr",
            "warmup_steps",
            "warmup_ratio",
            "boundaries",
            "factor",
            "name",
        )
        return {name: getattr(self, name) for name in names}


@keras.saving.register_keras_serializable("vfnet_tf")
class CosineCycles(keras.optimizers.schedules.LearningRateSchedule):
    """Repeated halves of a cosine from the full rate down, for weight averaging.

        rate(t) = end + (base_lr - end) * (1 + cos(pi * u)) / 2
        end     = base_lr * final_ratio
        u       = t / cycle_steps, less its whole part

    There is no warm-up. In the official phase of weight averaging each epoch is one
    cycle: docs/parity.md, S36.

    Args:
        base_lr: float > 0, the rate of the first step of a cycle.
        cycle_steps: number >= 1. If it is no whole number, since gradients of batches are
            accumulated, cycle e begins at the first step from `e * cycle_steps`.
        final_ratio: float in [0, 1], `end / base_lr`.
        name: str.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(self, base_lr, cycle_steps, final_ratio=0.01, name="CosineCycles"):
        super().__init__()
        _check("base_lr", base_lr, base_lr > 0, "> 0")
        _check("cycle_steps", cycle_steps, cycle_steps >= 1, ">= 1")
        _check("final_ratio", final_ratio, 0 <= final_ratio <= 1, "in [0, 1]")
        self.base_lr = base_lr
        self.cycle_steps = cycle_steps
        self.final_ratio = final_ratio
        self.name = name

    def __call__(self, step):
        """The rate of a step.

        Args:
            step: integer scalar or array, counted from 0.

        Returns:
            float32 of the same shape.
        """
        # float32 counts steps exactly up to 2**24.
        step = ops.cast(step, "float32")
        progress = ops.mod(step, float(self.cycle_steps)) / self.cycle_steps
        end = self.base_lr * self.final_ratio
        return end + (self.base_lr - end) * 0.5 * (1.0 + ops.cos(math.pi * progress))

    def get_config(self):
        names = ("base_lr", "cycle_steps", "final_ratio", "name")
        return {name: getattr(self, name) for name in names}


def _check(name, value, is_good, rule):
    if not is_good:
        raise ValueError(f"`{name}` must be {rule}. Received: {name}={value}")


def scale_learning_rate(base_lr=0.01, base_batch=16, *, batch):
    """A learning rate proportional to the images per step.

    Args:
        base_lr: float, the rate for `base_batch` images.
        base_batch: int > 0.
        batch: int > 0, images per step over all replicas.

    Returns:
        float, `base_lr * batch / base_batch`.

    Raises:
        ValueError: a batch is not positive.
    """
    if base_batch <= 0 or batch <= 0:
        raise ValueError(
            f"Batches must be > 0. Received: base_batch={base_batch}, batch={batch}"
        )
    return base_lr * batch / base_batch
