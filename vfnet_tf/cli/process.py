"""Settings of a process that must come before the import of TensorFlow."""

import os
import platform
import sys


def choose_onednn():
    """Makes TensorFlow use oneDNN in a process that will train.

    With AVX512-VNNI TensorFlow does so itself. With AVX2 on two cores oneDNN takes 3.75 s
    in place of 6.8 for a step of ResNet-50 on 4 images of 256x320, since Eigen's gradients
    of convolutions copy the maps. Inference is slower with it: 7.1 s in place of 4.5 for
    1x800x1344. A `TF_ENABLE_ONEDNN_OPTS` in the environment wins.
    """
    x86 = platform.machine().lower() in {"x86_64", "amd64"}
    if x86 and "tensorflow" not in sys.modules:
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
