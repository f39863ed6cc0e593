import types

import numpy as np
import pytest

from vfnet_tf.data.normalization import IDENTITY
from vfnet_tf.inference.runtime import RuntimePredictor


@pytest.mark.parametrize(("keep_ratio", "size"), [(True, (48, 64)), (False, (64, 64))])
def test_the_metadata_of_a_file_say_how_images_are_prepared(keep_ratio, size):
    metadata = {
        "config": None,
        "image_size": [64, 64],
        "keep_ratio": keep_ratio,
        "normalization": IDENTITY.to_dict(),
        "class_names": ["a", "b"],
        "category_ids": [3, 5],
    }
    model = types.SimpleNamespace(metadata=metadata, num_classes=2, score_threshold=0.1)
    predictor = RuntimePredictor(model)
    assert predictor.class_names == ("a", "b") and predictor.category_ids == (3, 5)
    prepared = predictor.prepare(np.full((30, 40, 3), 7, "uint8"))
    assert tuple(prepared["image_size"]) == size
    assert prepared["images"][:48].max() == 7  # the normalisation of the file
