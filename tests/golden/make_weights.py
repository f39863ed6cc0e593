"""Deterministic, name-keyed weights and inputs for the golden data (numpy only).

Nothing here was taken from any detector code base; it only turns a list of
[name, shape, dtype] (``models/<config>.state.json``) into arrays.

Random stream
-------------
Every array has its own generator::

    seed = int.from_bytes(sha256((salt + name).encode("utf-8")).digest()[:8], "little")
    rng  = np.random.Generator(np.random.PCG64(seed))

``name`` is the full state-dict name (``backbone.layer1.0.conv1.weight``),
``salt`` is "" for the public golden data.  All draws are made in float64 and
rounded to float32 at the end, so the values are exactly representable in both.
Shapes are the shapes of the state list (conv kernels are O,I/groups,kh,kw).

The kind of an array is decided from its name and from the state list:

====================================  =========================================
running_mean                          N(0, 0.1)
running_var                           U(0.5, 1.5)
num_batches_tracked                   0 (int64)
``*.weight`` of rank 1 (BN/GN gamma)  U(0.5, 1.5)
``*.bias`` whose sibling weight has
rank 1 (BN/GN beta)                   N(0, 0.1)
rank-4 kernels                        N(0, gain * sqrt(2 / fan_in)),
                                      fan_in = I/groups * kh * kw
other ``*.bias``                      N(0, 0.05)
``scales*.i.scale`` (shape ())        U(0.8, 1.2)
``moment_transfer`` (shape (2,))      N(0, 0.2)
====================================  =========================================

``gain`` is 0.7 with these exceptions (checked in this order, GAINS below, first
match wins; they keep activations O(1) and outputs varied):

* DCNv2 ``conv_offset.weight``: plain std 0.6/sqrt(fan_in) - NON zero, gives
  sampling offsets of a few tenths to about two pixels;
  ``conv_offset.bias``: N(0, 0.3)  (27 = 18 offsets (y0,x0,y1,x1..) + 9 mask logits)
* last 1x1 conv of a residual block (``backbone.layer*.conv3.weight``): 0.3, so
  the residual sum does not explode in the 101-layer nets
* final classification conv (``*_cls.weight`` of vfnet/atss/retina/fovea, and
  ``reppoints_cls_out.weight``): CLS gain below; its bias is CLS_BIAS + N(0, 0.3)
* ``vfnet_reg.weight``/``vfnet_reg_refine.weight``/``conv_reg.weight`` etc.: small
  gains (the outputs go through exp); ``vfnet_reg.bias`` is -1 + N(0, 0.1)
* head towers without GroupNorm (retina_head/fovea: ``bbox_head.*_convs.*`` when
  the state list has no ``.gn.`` next to them): 1.0

Images
------
``make_image(seed, n, h, w)`` -> float32 NHWC, already "normalised": a sum of a
coarse, a medium and a fine uniform noise, bilinearly enlarged, rounded to
float16-exact values (so storing/reading float16 loses nothing).
"""

import hashlib

import numpy as np

CLS_BIAS = -4.6

#  (substring or suffix, gain); first match wins.  kernels only.
GAINS = (
    ("vfnet_cls.weight", 1.4),
    ("atss_cls.weight", 1.4),
    ("retina_cls.weight", 0.75),
    ("conv_cls.weight", 0.75),
    ("reppoints_cls_out.weight", 1.4),
    ("vfnet_reg.weight", 0.6),
    ("vfnet_reg_refine.weight", 0.4),
    ("atss_reg.weight", 0.5),
    ("atss_centerness.weight", 0.7),
    ("retina_reg.weight", 0.3),
    ("conv_reg.weight", 0.35),
    ("reppoints_pts_init_out.weight", 1.5),
    ("reppoints_pts_refine_out.weight", 0.6),
)
CLS_BIASES = (
    "vfnet_cls.bias",
    "atss_cls.bias",
    "retina_cls.bias",
    "conv_cls.bias",
    "reppoints_cls_out.bias",
)


def rng_for(name, salt=""):
    seed = int.from_bytes(
        hashlib.sha256((salt + name).encode("utf-8")).digest()[:8], "little"
    )
    return np.random.Generator(np.random.PCG64(seed))


def one(name, shape, dtype, ranks, salt=""):
    """One array.  ``ranks`` maps every name of the state list to its rank."""
    r = rng_for(name, salt)
    shape = tuple(shape)
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if name.endswith("running_mean"):
        v = 0.1 * r.standard_normal(shape)
    elif name.endswith("running_var"):
        v = r.uniform(0.5, 1.5, shape)
    elif name.endswith(".scale"):
        v = r.uniform(0.8, 1.2, shape)
    elif name.endswith("moment_transfer"):
        v = 0.2 * r.standard_normal(shape)
    elif name.endswith(".weight") and len(shape) == 1:
        v = r.uniform(0.5, 1.5, shape)
    elif name.endswith(".weight") and len(shape) in (2, 4):
        fan_in = int(np.prod(shape[1:]))
        z = r.standard_normal(shape)
        if "conv_offset" in name:
            v = 0.6 / np.sqrt(fan_in) * z
        else:
            gain = 0.7
            for key, g in GAINS:
                if name.endswith(key):
                    gain = g
                    break
            else:
                if ".layer" in name and name.endswith("conv3.weight"):
                    gain = 0.3
                elif (
                    name.startswith("bbox_head.")
                    and "_convs." in name
                    and name.replace("conv.weight", "gn.weight") not in ranks
                ):
                    gain = 1.0
            v = gain * np.sqrt(2.0 / fan_in) * z
    elif name.endswith(".bias"):
        z = r.standard_normal(shape)
        sibling = name[: -len("bias")] + "weight"
        if ranks.get(sibling) == 1:
            v = 0.1 * z
        elif "conv_offset" in name:
            v = 0.3 * z
        elif name.endswith(CLS_BIASES):
            v = CLS_BIAS + 0.3 * z
        elif name.endswith("vfnet_reg.bias"):
            v = -1.0 + 0.1 * z
        else:
            v = 0.05 * z
    else:
        raise ValueError(f"no rule for {name} {shape}")
    return np.asarray(v, np.float64).astype(np.float32)


def generate(state, salt=""):
    """state: list of [name, shape, dtype] -> dict name -> array."""
    ranks = {n: len(s) for n, s, _ in state}
    return {n: one(n, s, d, ranks, salt) for n, s, d in state}


def _enlarge(a, h, w):
    """Bilinear, align-corners enlargement of (n, a, b, c) to (n, h, w, c)."""

    def axis(a, size, ax):
        n = a.shape[ax]
        pos = np.linspace(0.0, n - 1.0, size)
        lo = np.minimum(np.floor(pos).astype(int), n - 2)
        t = pos - lo
        sh = [1] * a.ndim
        sh[ax] = size
        t = t.reshape(sh)
        return np.take(a, lo, ax) * (1 - t) + np.take(a, lo + 1, ax) * t

    return axis(axis(a, h, 1), w, 2)


def make_image(seed, n=1, h=256, w=320):
    r = np.random.Generator(np.random.PCG64(seed))
    img = 1.6 * _enlarge(r.uniform(-1, 1, (n, 5, 6, 3)), h, w)
    img = img + 1.0 * _enlarge(r.uniform(-1, 1, (n, 17, 21, 3)), h, w)
    img = img + 0.4 * r.uniform(-1, 1, (n, h, w, 3))
    return img.astype(np.float16).astype(np.float32)


def checksums(weights):
    """(k, 2) float64: sum and sum of absolute values of every array, in order."""
    return np.array(
        [
            [
                float(np.sum(v, dtype=np.float64)),
                float(np.sum(np.abs(v), dtype=np.float64)),
            ]
            for v in weights.values()
        ],
        np.float64,
    )
