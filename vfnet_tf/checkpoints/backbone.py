"""ImageNet weights for our backbones, by the names of torchvision and timm."""

import re

from vfnet_tf.checkpoints import architecture
from vfnet_tf.checkpoints.names import backbone_variables
from vfnet_tf.checkpoints.pytorch import read_checkpoint
from vfnet_tf.checkpoints.tensors import assign_tensors, match_tensors, raise_problems


def load_backbone_weights(backbone, weights):
    """Loads ImageNet weights, strictly.

    The classifier `fc` is dropped. The convolutions that predict the offsets of
    deformable layers (`conv_offset`) may be missing: they keep their values, which are
    initially zero.

    Args:
        backbone: a `ResNet` (ResNeXt too) or `Res2Net`.
        weights: path of a `.pth` or `.safetensors` file, or a mapping from name to
            array in PyTorch's layout. The names are torchvision's, or timm's for a
            Res2Net v1d, whose stem is called `conv1.0` .. `conv1.6` and `bn1`.

    Returns:
        The backbone.

    Raises:
        ValueError: if the file cannot be read safely, or if another tensor is missing,
            left over, misshapen or no float; all are listed, and no weight is changed.
        ImportError: for a `.safetensors` file without the package safetensors.
    """
    variables = backbone_variables(backbone)
    if len(variables) != len(backbone.weights):
        raise ValueError(
            "`backbone` must be a ResNet or Res2Net of this library; weights of Keras "
            f"models are read from .npz files. Received: backbone={backbone.name}"
        )
    checkpoint = read_checkpoint(weights)
    if architecture.is_detector(checkpoint.tensors):
        raise ValueError(
            "`weights` must be of a backbone alone; a whole detector is loaded by "
            f"load_pytorch_checkpoint. Received: {checkpoint.source}"
        )
    tensors = {
        name: tensor
        for name, tensor in checkpoint.tensors.items()
        if not name.startswith("fc.")
    }
    if "conv1.0.weight" in tensors and "stem.0.weight" in variables:
        tensors = {_from_timm(name): tensor for name, tensor in tensors.items()}
    values, problems = match_tensors(
        variables, tensors, may_lack=lambda name: ".conv_offset." in name
    )
    raise_problems(problems, f"{checkpoint.source} does not fit {backbone.name}")
    assign_tensors(variables, values)
    return backbone


def _from_timm(name):
    """The official name of a tensor in timm's stem of three convolutions.

    >>> _from_timm("conv1.3.weight"), _from_timm("bn1.bias"), _from_timm("conv1.6.weight")
    ('stem.3.weight', 'stem.7.bias', 'stem.6.weight')
    """
    # timm has the last norm outside the sequence; its place in it is 7.
    return re.sub(r"^bn1\.", "stem.7.", re.sub(r"^conv1\.(\d)\.", r"stem.\1.", name))
