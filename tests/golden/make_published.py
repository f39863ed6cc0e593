"""Copies the forward and training goldens of the published models and their rivals.

Run: `python tests/golden/make_published.py REFERENCE`, see `make_subset.py`. Written are
`STEM.npz` (forward), `STEM_training.npz` where there is one, and `STEM_state.json.gz`, the
ordered names and shapes of the official tensors, in `published/` and `rivals/`.
VFNet-ResNet-50 itself is in `make_subset.py`.
"""

import gzip
import pathlib
import shutil
import sys

STEMS = (
    "vfnet_r50_fpn_mdconv_c3-c5_mstrain_2x_coco",
    "vfnet_r101_fpn_1x_coco",
    "vfnet_r101_fpn_mdconv_c3-c5_mstrain_2x_coco",
    "vfnet_x101_32x4d_fpn_mstrain_2x_coco",
    "vfnet_x101_32x4d_fpn_mdconv_c3-c5_mstrain_2x_coco",
    "vfnet_x101_64x4d_fpn_mstrain_2x_coco",
    "vfnet_x101_64x4d_fpn_mdconv_c3-c5_mstrain_2x_coco",
    "vfnet_r2_101_fpn_mstrain_2x_coco",
    "vfnet_r2_101_fpn_mdconv_c3-c5_mstrain_2x_coco",
    "vfnetx_r2_101_fpn_mdconv_c3-c5_mstrain_59e_coco",
)
RIVALS = (
    "vfnet_raw_r50_fpn_1x_coco",
    "vfl_atss_r50_fpn_1x_coco",
    "vfl_retinanet_r50_fpn_4x4_1x_coco",
    "vfl_fovea_r50_fpn_4x4_1x_coco",
    "vfl_reppoints_moment_r50_fpn_gn-neck+head_4x4_1x_coco",
)


def main(reference):
    reference = pathlib.Path(reference)
    folders = dict.fromkeys(STEMS, "published")
    folders.update(dict.fromkeys(RIVALS, "rivals"))
    for stem, folder in folders.items():
        target = pathlib.Path(__file__).parent / folder
        target.mkdir(exist_ok=True)
        shutil.copyfile(reference / "golden" / f"{stem}.npz", target / f"{stem}.npz")
        training = reference / "train" / f"{stem}.npz"
        if training.is_file():
            shutil.copyfile(training, target / f"{stem}_training.npz")
        state = (reference / "models" / f"{stem}.state.json").read_bytes()
        # No time stamp: the same input gives the same file.
        packed = gzip.compress(state, mtime=0)
        (target / f"{stem}_state.json.gz").write_bytes(packed)


if __name__ == "__main__":
    main(sys.argv[1])
