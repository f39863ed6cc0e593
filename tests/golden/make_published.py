"""Copies the forward and training goldens of the published models.

Run: `python tests/golden/make_published.py REFERENCE`, see `make_subset.py`. Written are
`published/STEM.npz` (forward), `published/STEM_training.npz` where there is one, and
`published/STEM_state.json.gz`, the ordered names and shapes of the official tensors.
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


def main(reference):
    reference = pathlib.Path(reference)
    target = pathlib.Path(__file__).parent / "published"
    target.mkdir(exist_ok=True)
    for stem in STEMS:
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
