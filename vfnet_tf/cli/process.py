"""Settings of a command's process, which must come before TensorFlow is imported."""

import os
import platform
import sys


def choose_onednn():
    """Has TensorFlow use oneDNN, for a process that will train.

    Where there is AVX512-VNNI, TensorFlow does so itself. With AVX2 on two cores, a step
    of ResNet-50 on 4 images of 256x320 takes 3.75 s so in place of 6.8: Eigen's gradients
    of convolutions are slower, and their copies of the maps cost a third of that time in
    page faults. Inference stays without: 1x800x1344 took 7.1 s in place of 4.5.
    `TF_ENABLE_ONEDNN_OPTS` in the environment wins.
    """
    x86 = platform.machine().lower() in {"x86_64", "amd64"}
    if x86 and "tensorflow" not in sys.modules:
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
