"""TensorFlow's settings for a processor; they come before the import of TensorFlow."""

import functools
import os
import pathlib
import platform
import sys

ONEDNN = "TF_ENABLE_ONEDNN_OPTS"
FROZEN = "TF_ONEDNN_ASSUME_FROZEN_WEIGHTS"

#: Instruction sets with which TensorFlow itself turns oneDNN on.
ONEDNN_FLAGS = {
    *("avx512_vnni", "avx512_bf16", "avx_vnni"),
    *("amx_tile", "amx_int8", "amx_bf16"),
}


@functools.cache
def cpu_flags(path="/proc/cpuinfo"):
    """The instruction sets of the processor as Linux names them, else an empty set."""
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    lines = (line.partition(":") for line in text.splitlines())
    flags = (value for name, _, value in lines if name.strip() in ("flags", "Features"))
    return frozenset(next(flags, "").split())


def speed_up_training():
    """Makes TensorFlow use oneDNN in a process that will train.

    With AVX512-VNNI TensorFlow does so itself. With AVX2 on two cores oneDNN takes 3.75 s
    in place of 6.8 for a step of ResNet-50 on 4 images of 256x320, since Eigen's gradients
    of convolutions copy the maps. Inference is slower with it: 7.1 s in place of 4.5 for
    1x800x1344. A `TF_ENABLE_ONEDNN_OPTS` in the environment wins.

    Raises:
        ValueError: if the environment says that weights are frozen.
    """
    check_weights_may_change("Training")
    if _is_x86() and "tensorflow" not in sys.modules:
        os.environ.setdefault(ONEDNN, "1")


def _is_x86():
    return platform.machine().lower() in {"x86_64", "amd64"}


def speed_up_inference():
    """Makes TensorFlow on CPU detect faster in a process that does not train.

    Call it before the first import of TensorFlow or Keras. On processors with AVX2 where
    TensorFlow leaves oneDNN off (those without AVX512-VNNI) it sets
    `TF_ENABLE_ONEDNN_OPTS=1` and `TF_ONEDNN_ASSUME_FROZEN_WEIGHTS=1`: oneDNN reorders the
    kernel of a convolution once and keeps it. On others it changes nothing, since nothing
    is gained there. A `TF_ENABLE_ONEDNN_OPTS` in the environment wins.

    Kept kernels do not follow their weights. Detectors of this library notice other
    weights and trace their graphs again; training, and a call outside of a graph, are
    errors. Models of other libraries do not notice: TensorFlow then gives wrong results
    for trained weights, and for eager convolutions of one shape. So the process should
    do nothing but detect.

    Returns:
        bool: whether the process has these settings now.

    Raises:
        RuntimeError: if TensorFlow has been imported, which reads them then.

    >>> import vfnet_tf
    >>> vfnet_tf.speed_up_inference()  # doctest: +SKIP
    True
    """
    if "tensorflow" in sys.modules:
        raise RuntimeError(
            "`speed_up_inference` must come before the first import of TensorFlow and of "
            "Keras, which read the settings once"
        )
    if ONEDNN not in os.environ and "avx2" in cpu_flags() and not onednn_is_on():
        os.environ[ONEDNN] = os.environ[FROZEN] = "1"
    return weights_are_frozen()


def onednn_is_on():
    """Whether TensorFlow computes on an x86 CPU by oneDNN in this process."""
    if not _is_x86() or sys.platform == "darwin":
        return False
    if ONEDNN in os.environ:
        return _is_true(ONEDNN)
    return not ONEDNN_FLAGS.isdisjoint(cpu_flags())


def weights_are_frozen():
    """Whether TensorFlow keeps the first kernel of each convolution in this process."""
    return _is_true(FROZEN) and onednn_is_on()


def _is_true(variable):
    return os.environ.get(variable, "").lower() in ("1", "true")


def check_weights_may_change(what):
    """Refuses what cannot work on frozen weights.

    Args:
        what: str, what was asked for, in the words of a sentence's subject.

    Raises:
        ValueError: if `weights_are_frozen`.
    """
    if weights_are_frozen():
        raise ValueError(
            f"{what} gives wrong results where TensorFlow keeps the first kernel of each "
            f"convolution. Start the process without {FROZEN}=1, which "
            "`vfnet_tf.speed_up_inference` sets too"
        )
