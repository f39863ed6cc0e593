"""Makes the golden arrays of the core's tests out of the recorded reference.

Run: `python tests/golden/make_subset.py REFERENCE`, where REFERENCE is the folder with
arrays of the authors' PyTorch implementation (`models/`, `golden/`, `train/`, `ops/`,
`post/`, `sched/`; float64 runs, weights and images of `make_weights.py`).

Kept is what VFNet-ResNet-50's tests read. Maps are NHWC, except those of
`deform_conv.npz`, which are NCHW. Soft NMS, test-time augmentation, weight averaging
and the losses of other detectors are left out. Every file stays below 1 MB, so the
post-processing has one per image.
"""

import json
import pathlib
import shutil
import sys

import numpy as np

NAME = "vfnet_r50_fpn_1x_coco"
POSTPROCESS_CASES = (
    "nms0.6",
    "nms0.6_rescale1.25",
    "nms0.6_pre200_max20_thr0.1",
    "nms0.6_nolimit",
    "empty_thr0.99",
)
LOSSES = ("varifocal/", "focal/", "qfl/", "giou/", "overlaps/")


def copy(source, target, keep=lambda key: True):
    with np.load(source) as arrays:
        kept = {key: arrays[key] for key in arrays if keep(key)}
    np.savez_compressed(target, **kept)


def copy_postprocess(source, target, image):
    """One image's inputs (batch axis dropped) and its detections by case."""
    with np.load(source) as arrays:
        kept = {"img_shape": arrays["img_shape"][image]}
        for key in arrays:
            parts = key.split("/")
            if parts[0] == "input" and parts[1] != "bbox_pred":
                kept[key] = arrays[key][image]
            of_image = parts[0] in POSTPROCESS_CASES and parts[1] == str(image)
            if of_image and not parts[2].startswith("f64"):
                kept[f"{parts[0]}/{parts[2]}"] = arrays[key]
    np.savez_compressed(target, **kept)


def main(reference):
    reference, here = pathlib.Path(reference), pathlib.Path(__file__).parent
    with open(reference / "models" / f"{NAME}.state.json", encoding="utf-8") as file:
        state = json.load(file)
    rows = ",\n".join(json.dumps(row) for row in state)
    (here / "vfnet_r50_state.json").write_text(f"[\n{rows}\n]\n", encoding="utf-8")
    shutil.copyfile(
        reference / "golden" / f"{NAME}.npz", here / "vfnet_r50_outputs.npz"
    )
    shutil.copyfile(
        reference / "train" / f"{NAME}.npz", here / "vfnet_r50_training.npz"
    )
    copy(
        reference / "sched" / "vfnet_r50_3steps.npz",
        here / "vfnet_r50_3steps.npz",
        lambda key: not key.startswith("swa_"),
    )
    copy(
        reference / "ops" / "losses.npz",
        here / "losses.npz",
        lambda key: key.startswith(LOSSES) and not key.endswith("_f32"),
    )
    copy(
        reference / "ops" / "nms.npz", here / "nms.npz", lambda key: "/soft_" not in key
    )
    shutil.copyfile(reference / "ops" / "deform_conv.npz", here / "deform_conv.npz")
    for image in (0, 1):
        copy_postprocess(
            reference / "post" / f"{NAME}.npz",
            here / f"postprocess_image{image}.npz",
            image,
        )


if __name__ == "__main__":
    main(sys.argv[1])
