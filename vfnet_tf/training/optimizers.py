"""Stochastic gradient descent with PyTorch's arithmetic, and AdamW."""

import contextlib

import keras
from keras import ops


class _Updates:
    """A mixin for optimizers of Keras: clipping over replicas, and a count of updates.

    Keras clips each replica's gradient, `summed_clipnorm` their sum, so that any number
    of replicas take the same step. With `gradient_accumulation_steps` Keras 3.15's
    schedules and moving average count batches; here they count updates.

    Attributes:
        update_when: TensorFlow variable, bool: while it is False a step changes no
            weight and no slot, but counts. None always updates.
    """

    update_when = None

    def __init__(self, *args, summed_clipnorm=None, **kwargs):
        super().__init__(*args, **kwargs)
        if summed_clipnorm is not None and summed_clipnorm <= 0:
            raise ValueError(
                "`summed_clipnorm` must be > 0 or None. "
                f"Received: summed_clipnorm={summed_clipnorm}"
            )
        self.summed_clipnorm = summed_clipnorm

    def _clip_gradients(self, grads):
        grads = super()._clip_gradients(grads)
        if keras.backend.backend() == "tensorflow":
            return grads  # not summed yet
        return self._clip_sum(grads)

    def _all_reduce_sum_gradients(self, grads_and_vars):
        # Only the TensorFlow backend calls it, just before the update.
        grads_and_vars = super()._all_reduce_sum_gradients(grads_and_vars)
        if not grads_and_vars:
            return grads_and_vars
        gradients, variables = zip(*grads_and_vars, strict=True)
        return list(zip(self._clip_sum(gradients), variables, strict=True))

    def _distributed_tf_update_step(self, distribution, grads_and_vars, learning_rate):
        # Only the TensorFlow backend calls it.
        if self.update_when is None:
            return super()._distributed_tf_update_step(
                distribution, grads_and_vars, learning_rate
            )
        import tensorflow as tf

        def update(variable, gradient, learning_rate):
            def step():
                self.update_step(gradient, variable, learning_rate)
                return True

            # One condition for all variables would keep all gradients in memory.
            tf.cond(self.update_when, step, lambda: False)

        for gradient, variable in grads_and_vars:
            distribution.extended.update(
                variable, update, args=(gradient, learning_rate), group=False
            )

    def _apply_weight_decay(self, variables):
        decay = self.weight_decay
        if self.update_when is None or decay is None:
            return super()._apply_weight_decay(variables)
        self.weight_decay = decay * ops.cast(self.update_when, "float32")
        try:
            super()._apply_weight_decay(variables)
        finally:
            self.weight_decay = decay

    def _clip_sum(self, gradients):
        if self.summed_clipnorm is None:
            return gradients
        return clip_by_global_norm(gradients, self.summed_clipnorm)

    def _get_current_learning_rate(self):
        rate = self._learning_rate
        if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
            return rate(self.iterations)
        return super()._get_current_learning_rate()

    def _update_model_variables_moving_average(self, trainable_variables):
        # The first update copies the weights.
        momentum = ops.where(self.iterations > 0, self.ema_momentum, 0.0)
        if self.gradient_accumulation_steps:
            is_update = (self._iterations + 1) % self.gradient_accumulation_steps == 0
            momentum = ops.where(is_update, momentum, 1.0)
        averages = self._model_variables_moving_average
        for variable, average in zip(trainable_variables, averages, strict=True):
            if average is not None:
                own = ops.cast(momentum, variable.dtype)
                average.assign(own * average + (1 - own) * variable)

    def get_config(self):
        return {**super().get_config(), "summed_clipnorm": self.summed_clipnorm}


@keras.saving.register_keras_serializable("vfnet_tf")
class AdamW(_Updates, keras.optimizers.AdamW):
    """`keras.optimizers.AdamW` with `summed_clipnorm`.

    Args:
        *args, **kwargs: of `keras.optimizers.AdamW`.
        summed_clipnorm: see `SGD`.

    Raises:
        ValueError: `summed_clipnorm` is not positive.
    """


@keras.saving.register_keras_serializable("vfnet_tf")
class SGD(_Updates, keras.optimizers.SGD):
    """`torch.optim.SGD`, with the bias rule of the official VFNet configs.

        g = gradient + weight_decay * w
        v = momentum * v + g                        (v = 0 before step 1)
        w = w - learning_rate * v                   (Nesterov: g + momentum * v)

    Keras differs twice. Its `weight_decay` shrinks the weight beside the gradient, so
    momentum never sees it. Its velocity includes the learning rate, so a drop of the rate
    takes full effect only after `1 / (1 - momentum)` steps.

    A bias of a convolution or dense layer has twice the learning rate and no weight
    decay. Shifts of norms (`beta`) and biases that predict offsets of a deformable
    convolution (any path with `conv_offset`) are no exceptions: docs/parity.md, S34.

    Args:
        learning_rate: float, a `LearningRateSchedule` or a callable.
        momentum: float in [0, 1].
        nesterov: bool.
        weight_decay: float >= 0 or None, the L2 factor. Variables given to
            `exclude_from_weight_decay` have none.
        bias_lr_multiplier: float >= 0, times the learning rate of biases.
        bias_decay_multiplier: float >= 0, times the weight decay of biases.
        **kwargs: of `keras.optimizers.Optimizer`, whose `clipnorm` and `global_clipnorm`
            clip each replica's gradient alone; and `summed_clipnorm`, float > 0 or None:
            the largest L2 norm of the gradient of all variables together, summed over
            replicas, before weight decay. A longer gradient is scaled down to it.

    Raises:
        ValueError: a decay or a multiplier is negative, or `summed_clipnorm` is not
            positive.
    """

    def __init__(
        self,
        learning_rate=0.01,
        momentum=0.9,
        nesterov=False,
        weight_decay=1e-4,
        bias_lr_multiplier=2.0,
        bias_decay_multiplier=0.0,
        name="SGD",
        **kwargs,
    ):
        super().__init__(
            learning_rate,
            momentum=momentum,
            nesterov=nesterov,
            weight_decay=weight_decay,
            name=name,
            **kwargs,
        )
        for argument, value in (
            ("weight_decay", weight_decay),
            ("bias_lr_multiplier", bias_lr_multiplier),
            ("bias_decay_multiplier", bias_decay_multiplier),
        ):
            if value is not None and value < 0:
                raise ValueError(
                    f"`{argument}` must be >= 0. Received: {argument}={value}"
                )
        self.bias_lr_multiplier = bias_lr_multiplier
        self.bias_decay_multiplier = bias_decay_multiplier

    def multipliers(self, variable):
        """`(lr_multiplier, decay_multiplier)` of a `keras.Variable`, two floats.

        They are factors of `learning_rate` and `weight_decay`.
        """
        lr_multiplier, decay_multiplier = 1.0, 1.0
        if is_bias(variable.path):
            lr_multiplier = self.bias_lr_multiplier
            decay_multiplier = self.bias_decay_multiplier
        if not self._use_weight_decay(variable):
            decay_multiplier = 0.0
        return lr_multiplier, decay_multiplier

    def update_step(self, gradient, variable, learning_rate):
        """One variable's step; `gradient` is summed over all replicas."""
        with _after(gradient):
            self._update(gradient, variable, learning_rate)

    def _update(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        # TensorFlow gives a tf.Variable, which has no path.
        lr_multiplier, decay_multiplier = self.multipliers(
            self._trainable_variables[index]
        )
        dtype = variable.dtype
        learning_rate = ops.cast(learning_rate, dtype) * lr_multiplier
        gradient = ops.cast(gradient, dtype)

        decay = (self.weight_decay or 0.0) * decay_multiplier
        if decay:
            gradient = gradient + ops.cast(decay, dtype) * variable
        if self.momentum:
            momentum = ops.cast(self.momentum, dtype)
            velocity = momentum * self.momentums[index] + gradient
            self.assign(self.momentums[index], velocity)
            if self.nesterov:
                gradient = gradient + momentum * velocity
            else:
                gradient = velocity
        self.assign_sub(variable, learning_rate * gradient)

    def _apply_weight_decay(self, variables):
        """Does nothing, since `update_step` decays."""

    def get_config(self):
        own = {
            "bias_lr_multiplier": self.bias_lr_multiplier,
            "bias_decay_multiplier": self.bias_decay_multiplier,
        }
        return {**super().get_config(), **own}


def clip_by_global_norm(gradients, limit):
    """Scales gradients down together so that their common L2 norm is `limit` at most.

    Args:
        gradients: sequence of float tensors of any shapes; None for no gradient.
        limit: float > 0.

    Returns:
        list of the same; each times `limit / max(norm, limit)`.
    """
    squares = [
        ops.sum(ops.square(ops.cast(gradient, "float32")))
        for gradient in gradients
        if gradient is not None
    ]
    norm = ops.sqrt(sum(squares))
    factor = limit / ops.maximum(norm, limit)
    return [
        None if gradient is None else gradient * ops.cast(factor, gradient.dtype)
        for gradient in gradients
    ]


def is_bias(path):
    """Whether a variable's path names a bias with multipliers of its own.

    Args:
        path: str, `keras.Variable.path`, such as `"head/vfnet_reg/bias"`.

    Returns:
        bool. False for `beta`, and for a bias anywhere under `conv_offset`.
    """
    *layers, variable_name = path.split("/")
    if any("conv_offset" in layer for layer in layers):
        return False
    return variable_name == "bias"


def _after(tensor):
    """Operations inside wait for `tensor` in a TensorFlow graph.

    Decay and momentum depend on no gradient. A graph would compute them for all variables
    at its start and keep two more copies of the model.
    """
    if keras.backend.backend() != "tensorflow":
        return contextlib.nullcontext()
    import tensorflow as tf

    return tf.control_dependencies([tensor])
