"""The exponential moving average of the weights that Keras's optimizers keep."""

import contextlib

import keras


@contextlib.contextmanager
def ema_weights(model):
    """Inside, the model has the averaged weights; afterwards its own, bit by bit.

    `keras.callbacks.SwapEMAWeights` adds and subtracts on TensorFlow, which rounds: each
    evaluation would change the training a little. Variables that are not trainable, such
    as the statistics of batch norms, stay.

    Args:
        model: compiled with an optimizer that has `use_ema=True`.

    Raises:
        ValueError: the optimizer keeps no average.
    """
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    if not optimizer.use_ema:
        raise ValueError(
            "The optimizer must keep an average (`use_ema=True`). "
            f"Received: {optimizer.name} with use_ema={optimizer.use_ema}"
        )
    # The average is zero before the first update.
    has_average = int(keras.ops.convert_to_numpy(optimizer.iterations)) > 0
    if has_average:
        _exchange(optimizer)
    try:
        yield
    finally:
        if has_average:
            _exchange(optimizer)


@contextlib.contextmanager
def own_weights_at_end(model):
    """Inside, `fit` leaves a model with its own weights, from which training goes on.

    Otherwise Keras puts the average that an optimizer keeps in their place at the end.
    """
    optimizer = model.optimizer
    optimizer.finalize_variable_values = lambda variables: None
    try:
        yield
    finally:
        del optimizer.finalize_variable_values


def _exchange(optimizer):
    averages = optimizer._model_variables_moving_average
    for variable, average in zip(optimizer._trainable_variables, averages, strict=True):
        if average is not None:
            if keras.backend.backend() == "jax":
                # JAX compares arrays from the host over all processes, and only one
                # process may be here. Arrays on the devices are not compared.
                value, mean = variable.value, average.value
            else:
                value, mean = keras.ops.convert_to_numpy(variable).copy(), average
            variable.assign(mean)
            average.assign(value)
