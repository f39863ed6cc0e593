"""VarifocalNet (VFNet) and its relatives for Keras 3."""

import importlib

from vfnet_tf import _registration

__version__ = "0.1.0"

#: public name -> the module that has it; imported when first asked for
_PUBLIC = {
    "ATSSAssigner": "vfnet_tf.assigners",
    "DenseHead": "vfnet_tf.heads",
    "DenseDetector": "vfnet_tf.detectors",
    "FCOS": "vfnet_tf.detectors",
    "FPN": "vfnet_tf.necks",
    "FoveaBox": "vfnet_tf.detectors",
    "PAFPN": "vfnet_tf.necks",
    "RepPoints": "vfnet_tf.detectors",
    "RepPointsHead": "vfnet_tf.heads",
    "Res2Net": "vfnet_tf.backbones",
    "ResNet": "vfnet_tf.backbones",
    "RetinaNet": "vfnet_tf.detectors",
    "VFNet": "vfnet_tf.detectors",
    "VFNetHead": "vfnet_tf.heads",
    "KerasBackbone": "vfnet_tf.backbones",
    "Predictor": "vfnet_tf.inference.predictor",
    "Trainer": "vfnet_tf.training.trainer",
    "build_detector": "vfnet_tf.builder",
    "evaluate": "vfnet_tf.inference.evaluate",
    "list_configs": "vfnet_tf.config",
    "load_config": "vfnet_tf.config",
    "open_dataset": "vfnet_tf.data.formats.readers",
    "model_card": "vfnet_tf.paper.model_cards",
    "load_pytorch_checkpoint": "vfnet_tf.checkpoints.pytorch",
    "speed_up_inference": "vfnet_tf.processor",
}
_MODULES = ("layers", "losses", "assigners", "box_coders", "export", "reports")

__all__ = [*_PUBLIC, *_MODULES, "__version__"]


def __getattr__(name):
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"vfnet_tf.{name}")
    raise AttributeError(f"module 'vfnet_tf' has no attribute {name!r}")


def __dir__():
    return sorted(__all__)


_registration.watch()
