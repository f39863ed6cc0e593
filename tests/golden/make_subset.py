"""Makes the golden arrays of the core's tests out of the recorded reference.

Run: `python tests/golden/make_subset.py REFERENCE`, where REFERENCE is the folder with
arrays of the authors' PyTorch implementation (`models/`, `golden/`, `train/`, `ops/`,
`post/`, `sched/`; float64 runs, weights and images of `make_weights.py`).

Kept is what VFNet-ResNet-50's tests read. Maps are NHWC, except those of
`deform_conv.npz`, which are NCHW. The "naive" soft-NMS, weight averaging and the losses
of other detectors are left out. Every file stays below 1 MB, so the post-processing has
one per image, and test-time augmentation only what scores above the threshold.
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
    "softnms0.65",
    "softnms0.65_rescale1.25",
    "softnms0.3_thr0.08_max1000",
)
LEVELS = ("P3", "P4", "P5", "P6", "P7")
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


def copy_augmented(source, target, score_threshold=0.05):
    """Four views' inputs, and the detections of all together.

    Of the (point, class) pairs only those above the threshold are kept, and of the
    points only those that have one: the others neither enter NMS nor push one of these
    out of the 1000 best points of their level.
    """
    least = np.log(score_threshold / (1 - score_threshold))
    with np.load(source) as arrays:
        kept = {"boxes": arrays["tta/dets"][:, :4], "scores": arrays["tta/dets"][:, 4]}
        kept["labels"] = arrays["tta/labels"]
        kept["scale"] = arrays["tta/scale_factor"]  # horizontal, vertical, twice
        for view in range(len(kept["scale"])):
            logits, distances = (
                [arrays[f"tta/{view}/{name}/{level}"][0] for level in LEVELS]
                for name in ("cls_score", "bbox_pred_refine")
            )
            kept[f"{view}/grid"] = np.array([x.shape[:2] for x in logits], "int16")
            logits = np.concatenate([x.reshape(-1, x.shape[-1]) for x in logits])
            distances = np.concatenate([x.reshape(-1, 4) for x in distances])
            # A little more than the threshold asks for: rounding must not matter.
            points, labels = np.nonzero(logits > least - 1e-3)
            kept[f"{view}/pair_points"] = points.astype("int16")
            kept[f"{view}/pair_labels"] = labels.astype("uint8")
            kept[f"{view}/pair_logits"] = logits[points, labels]
            points = np.unique(points)
            kept[f"{view}/points"] = points.astype("int16")
            kept[f"{view}/distances"] = distances[points]
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
        reference / "ops" / "nms.npz",
        here / "nms.npz",
        lambda key: "/soft_naive" not in key,
    )
    shutil.copyfile(reference / "ops" / "deform_conv.npz", here / "deform_conv.npz")
    for image in (0, 1):
        copy_postprocess(
            reference / "post" / f"{NAME}.npz",
            here / f"postprocess_image{image}.npz",
            image,
        )
    copy_augmented(reference / "post" / f"{NAME}.npz", here / "augmented.npz")


if __name__ == "__main__":
    main(sys.argv[1])
