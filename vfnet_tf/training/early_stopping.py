import keras


class StopWithoutImprovement(keras.callbacks.Callback):
    """Ends `fit` when the best epoch lies too many epochs back.

    Unlike `keras.callbacks.EarlyStopping` it survives a resume, since the checkpoint
    keeps the best epoch. It must come after the checkpoint.

    Args:
        checkpoint: `ResumableCheckpoint`, which monitors e.g. `val_AP`.
        patience: int > 0, epochs without a better value.

    Raises:
        ValueError: `patience` is below 1.
    """

    def __init__(self, checkpoint, patience):
        super().__init__()
        if patience < 1:
            raise ValueError(f"`patience` must be >= 1. Received: patience={patience}")
        self.checkpoint = checkpoint
        self.patience = patience

    def is_over(self, epoch):
        """Whether training is over after so many epochs."""
        best_epoch = self.checkpoint.best_epoch
        return best_epoch is not None and epoch - best_epoch >= self.patience

    def on_epoch_end(self, epoch, logs=None):
        if self.is_over(epoch + 1):
            print(
                f"\nstopping after epoch {epoch + 1}: {self.checkpoint.monitor} was best, "
                f"{self.checkpoint.best:.4g}, after epoch {self.checkpoint.best_epoch}"
            )
            self.model.stop_training = True
