"""One small detector of each architecture family, with random weights."""

import keras
import numpy as np

import vfnet_tf
from tests.conftest import SMALL, build_small
from vfnet_tf.backbones import res2net, resnet

#: Backbone and neck of the published models that are not ResNet and FPN alone.
BACKBONES = {
    "resnet18": lambda: (vfnet_tf.ResNet(18), vfnet_tf.FPN(32)),
    "batch_norm": lambda: (vfnet_tf.ResNet(18, norm="batch_norm"), vfnet_tf.FPN(32)),
    "mdconv": lambda: (
        vfnet_tf.ResNet(50, deformable=("C3", "C4", "C5")),
        vfnet_tf.FPN(32),
    ),
    "resnext_mdconv": lambda: (
        vfnet_tf.ResNet(
            50, groups=32, width_per_group=4, deformable=("C3", "C4", "C5")
        ),
        vfnet_tf.FPN(32),
    ),
    "vfnet_x": lambda: (
        vfnet_tf.Res2Net(50, deformable=("C3", "C4", "C5")),
        # 64, since groups of one channel would amplify rounding.
        vfnet_tf.PAFPN(64),
    ),
}
FAMILIES = (*SMALL, *BACKBONES)


def build(family, monkeypatch):
    """A detector of 3 classes whose backbone has one block per stage.

    Args:
        family: one of `FAMILIES`.
        monkeypatch: pytest's.
    """
    if family in SMALL:
        detector = build_small(family)
    else:
        one_each = (1, 1, 1, 1)
        monkeypatch.setitem(resnet.DEPTHS, 18, (one_each, False))
        monkeypatch.setitem(resnet.DEPTHS, 50, (one_each, True))
        monkeypatch.setitem(res2net.DEPTHS, 50, one_each)
        backbone, neck = BACKBONES[family]()
        is_x = family == "vfnet_x"
        head = vfnet_tf.VFNetHead(
            3, 64 if is_x else 32, 1, deformable_towers=is_x, name="head"
        )
        detector = vfnet_tf.VFNet(backbone, neck, head)
    disturb(detector)
    return detector


def disturb(detector):
    """Random norms, biases, offsets and predictors; other kernels stay as drawn.

    Of a size that keeps maps and offsets from growing from layer to layer: where points
    are far apart by chance, the last digits of one map decide the next.
    """
    rng = np.random.default_rng(11)
    for variable in detector.variables:
        path, value = variable.path, keras.ops.convert_to_numpy(variable)
        if path.startswith(("seed", "class_loss", "box_loss")) or not value.ndim:
            continue
        noise = rng.standard_normal(value.shape)
        is_kernel = value.ndim > 1
        per_input = value[..., 0].size ** -0.5
        if path.endswith("moving_variance"):
            value = rng.uniform(0.5, 2.0, value.shape)
        elif path.endswith("gamma"):
            value = 0.5 + 0.1 * noise
        elif "conv_offset" in path:
            # Shifts of about a cell.
            value = noise * 0.5 * (per_input if is_kernel else 1.0)
        elif "class_predictor" in path:
            # Scores from 0.1 to 0.9.
            value = 5 * noise * per_input if is_kernel else 0.3 * noise - 1
        elif "predictor" in path:
            value = 0.5 * noise * (per_input if is_kernel else 1.0)
        elif not is_kernel:
            value = value + 0.2 * noise
        variable.assign(value.astype("float32"))
