"""The published models beside the official implementation: maps, losses, gradients."""

import keras
import numpy as np
import pytest

from tests import contracts
from tests.detectors import recorded
from tests.detectors.recorded import LEVELS
from tests.detectors.test_vfnet import PARTS

DCN = "vfnet_r50_fpn_mdconv_c3-c5_mstrain_2x_coco"
VFNET_X = "vfnetx_r2_101_fpn_mdconv_c3-c5_mstrain_59e_coco"
RESNEXT = "vfnet_x101_32x4d_fpn_mstrain_2x_coco"
#: One of each family in every run (VFNet-X has a Res2Net); the others are slow tests.
QUICK = (DCN, RESNEXT, VFNET_X)
FILES = (recorded.GOLDEN / "published").glob("*_coco.npz")
STEMS = sorted(path.stem for path in FILES)
#: our maps and what they are recorded as
MAPS = [("backbone", level, level) for level in ("C2", "C3", "C4", "C5")]
MAPS += [("neck", level, level) for level in LEVELS]
MAPS += [
    (ours, level, f"{theirs}/{level}")
    for ours, theirs in (
        ("class_logits", "cls_score"),
        ("distances", "bbox_pred"),
        ("refined_distances", "bbox_pred_refine"),
    )
    for level in LEVELS
]


@pytest.fixture(scope="module")
def published():
    """Builds the detector of a stem with the golden weights; the last one is kept."""
    kept = {}

    def build(stem):
        if stem not in kept:
            kept.clear()
            kept[stem] = recorded.load(f"published/{stem}")
        return kept[stem]

    return build


def marked(stems):
    """Those off `QUICK` are slow; DCN and VFNet-X run on the other backends too.

    JAX compiles VFNet-X for 49 s, so there it is slow.
    """
    marks = {stem: [] if stem in QUICK else [pytest.mark.slow] for stem in stems}
    if keras.backend.backend() == "jax":
        marks[VFNET_X] = [pytest.mark.slow]
    for stem in (DCN, VFNET_X):
        marks[stem].append(pytest.mark.backend)
    return [pytest.param(stem, marks=marks[stem], id=stem) for stem in stems]


@pytest.mark.parametrize("stem", marked(STEMS))
def test_every_tensor_and_every_map_is_the_official_one(published, stem):
    name = f"published/{stem}"
    recorded.assert_every_tensor(published(stem), name)
    recorded.assert_every_map(published(stem), recorded.read(name), MAPS)


@contracts.on_tensorflow
@pytest.mark.parametrize("key", ["A", pytest.param("B", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "stem", [DCN, pytest.param(VFNET_X, marks=pytest.mark.slow)], ids=["DCN", "VFNet-X"]
)
def test_losses_and_gradients_are_the_official_ones(published, stem, key):
    import tensorflow as tf

    detector = published(stem)
    stored = recorded.read(f"published/{stem}_training")
    with tf.GradientTape() as tape:
        outputs = detector(recorded.images_of(stored, key), training=True)
        losses = detector.compute_losses(outputs, recorded.targets_of(stored, key))
        total = sum(losses.values())
    for name, value in contracts.to_numpy(losses).items():
        expected = stored[f"{key}/vfl/loss/{PARTS[name]}"]
        np.testing.assert_allclose(value, expected, rtol=1e-5)
    variables = recorded.trained_variables(detector)
    found = recorded.gradients_of(tape, total, variables)
    recorded.assert_gradients(found, stored, f"{key}/vfl")


def test_the_published_configs_differ_as_their_names_say():
    from vfnet_tf.config import list_configs, load_config

    stems = [name for name in list_configs() if name.startswith("vfnet")]
    # Rows of Tables 2 and 3 have names of their own.
    ablations = ("vfnet_raw", "vfnet_star")
    coco = [s for s in stems if s.endswith("_coco") and not s.startswith(ablations)]
    assert len(coco) == 14 and set(STEMS) < set(coco)
    for stem in coco:
        config = load_config(stem)
        model, training = config.model, config.training
        assert config.name == stem
        deformable = ("C3", "C4", "C5") if "mdconv" in stem else ()
        assert model.backbone.deformable == deformable
        assert model.deformable_towers == ("mdconv" in stem)
        assert bool(config.data.scale_range) == ("mstrain" in stem)
        epochs = 12 if "_1x_" in stem else 24 if "_2x_" in stem else 41
        assert training.epochs == epochs
        assert (model.neck == "pafpn") == stem.startswith("vfnetx")
    names = {load_config(stem).model.backbone.name for stem in coco}
    assert len(names) == 5
