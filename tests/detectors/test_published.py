"""The published models beside the official implementation: maps, losses, gradients."""

import gzip
import json
import pathlib

import keras
import numpy as np
import pytest

from tests import contracts
from tests.detectors.test_vfnet import PARTS, images_of, needs_tensorflow, targets_of
from tests.golden import make_weights
from vfnet_tf.builder import build_detector
from vfnet_tf.checkpoints.names import is_ignorable, official_variables
from vfnet_tf.checkpoints.pytorch import load_pytorch_checkpoint

PUBLISHED = pathlib.Path(__file__).parents[1] / "golden" / "published"
DCN = "vfnet_r50_fpn_mdconv_c3-c5_mstrain_2x_coco"
VFNET_X = "vfnetx_r2_101_fpn_mdconv_c3-c5_mstrain_59e_coco"
RESNEXT = "vfnet_x101_32x4d_fpn_mstrain_2x_coco"
#: One of each family in every run (VFNet-X has a Res2Net); the others are slow tests.
QUICK = (DCN, RESNEXT, VFNET_X)
STEMS = sorted(path.stem for path in PUBLISHED.glob("*_coco.npz"))
LEVELS = ("P3", "P4", "P5", "P6", "P7")
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


def read(name):
    with np.load(PUBLISHED / f"{name}.npz") as arrays:
        return dict(arrays)


def state_of(stem):
    """Official tensors, (name, shape, dtype) in order."""
    packed = (PUBLISHED / f"{stem}_state.json.gz").read_bytes()
    return json.loads(gzip.decompress(packed))


@pytest.fixture(scope="module")
def published():
    """Builds the detector of a stem with the golden weights; the last one is kept."""
    kept = {}

    def build(stem):
        if stem not in kept:
            kept.clear()
            detector = build_detector(stem)
            weights = make_weights.generate(state_of(stem))
            kept[stem] = load_pytorch_checkpoint(detector, weights)
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
    detector, stored = published(stem), read(stem)
    variables = official_variables(detector)
    shapes = {
        name: shape for name, shape, _ in state_of(stem) if not is_ignorable(name)
    }
    assert sorted(variables) == sorted(shapes)
    assert len(variables) == len(detector.variables)
    for name, shape in shapes.items():
        assert np.prod(variables[name].shape) == np.prod(shape), name

    def forward(image):
        backbone = detector.backbone(image, training=False)
        neck = detector.neck(backbone)
        return {"backbone": backbone, "neck": neck, **detector.head(neck)}

    image = make_weights.make_image(int(stored["image_seed"]), 1, 256, 320)
    maps = contracts.evaluate(forward, image)
    for part, level, key in MAPS:
        found = maps[part][level]
        assert found.shape == tuple(stored[f"{key}/shape"])
        rows, columns, channels = stored[f"{key}/stride"]
        values = stored.get(f"{key}/values", stored.get(f"{key}/slice"))
        # As for ResNet-50: float32 can reach 3e-6 of the largest value.
        contracts.assert_close_to_max(
            found[:, ::rows, ::columns, ::channels], values, 2e-5
        )
        wide = found.astype("float64")
        statistics = [wide.mean(), wide.std(), wide.min(), wide.max()]
        statistics.append(np.abs(wide).mean())
        contracts.assert_close_to_max(statistics, stored[f"{key}/stats"], 2e-5)


@needs_tensorflow
@pytest.mark.parametrize("key", ["A", pytest.param("B", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "stem", [DCN, pytest.param(VFNET_X, marks=pytest.mark.slow)], ids=["DCN", "VFNet-X"]
)
def test_losses_and_gradients_are_the_official_ones(published, stem, key):
    import tensorflow as tf

    detector, stored = published(stem), read(f"{stem}_training")
    trained = {id(variable) for variable in detector.trainable_variables}
    names = {
        name: variable
        for name, variable in official_variables(detector).items()
        if id(variable) in trained
    }
    with tf.GradientTape() as tape:
        outputs = detector(images_of(stored, key), training=True)
        losses = detector.compute_losses(outputs, targets_of(stored, key))
        total = sum(losses.values())
    for name, value in contracts.to_numpy(losses).items():
        expected = stored[f"{key}/vfl/loss/{PARTS[name]}"]
        np.testing.assert_allclose(value, expected, rtol=1e-5)
    sources = [variable.value for variable in names.values()]
    flat = tape.gradient(total, sources, unconnected_gradients="zero")
    found = {}
    for name, gradient in zip(names, contracts.to_numpy(flat), strict=True):
        is_kernel = gradient.ndim == 4
        found[name] = gradient.transpose(3, 2, 0, 1) if is_kernel else gradient
    recorded = stored[f"{key}/vfl/grad_names"].tolist()
    assert set(found) == set(recorded)
    norms = [np.linalg.norm(found[name].astype("float64")) for name in recorded]
    # As the reference suggests for float32, where ReLUs and samples flip.
    np.testing.assert_allclose(
        norms, stored[f"{key}/vfl/grad_norm"], rtol=3e-3, atol=1e-6
    )


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
