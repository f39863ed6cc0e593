import builtins
import math

import keras
import numpy as np
import pytest
from PIL import Image

from vfnet_tf.training.tensorboard import TensorBoardLog

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="event files are TensorFlow's"
)


def test_scalars_and_pictures_can_be_read_back(tmp_path):
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    Image.fromarray(np.full((4, 6, 3), 90, "uint8")).save(tmp_path / "samples.png")
    log = TensorBoardLog(tmp_path / "events", tmp_path / "samples.png", lambda: 0.25)
    log.on_epoch_end(0, {"loss": 3.0, "val_AP": math.nan})
    log.on_epoch_end(1, {"loss": 2.0, "val_AP": 0.5})
    events = event_accumulator.EventAccumulator(
        str(tmp_path / "events"), size_guidance={event_accumulator.TENSORS: 0}
    )
    events.Reload()

    def values(name):
        import tensorflow as tf

        found = events.Tensors(name)
        return [(e.step, float(tf.make_ndarray(e.tensor_proto))) for e in found]

    assert values("loss") == [(1, 3.0), (2, 2.0)]
    assert values("val_AP") == [(2, 0.5)]
    assert values("learning_rate") == [(1, 0.25), (2, 0.25)]
    assert [e.step for e in events.Tensors("truth beside detections")] == [2]


def test_without_the_extra_it_says_how_to_install_it(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **settings):
        if name == "tensorboard":
            raise ImportError(name)
        return real(name, *arguments, **settings)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"vfnet_tf\[tensorboard\]"):
        TensorBoardLog(tmp_path)
