"""Published numbers of the paper's tables and the official models.

`TABLES` holds the ablations, which `vfnet study` trains; `RESULTS` holds Table 4 and the
numbers of official models that stand in no table.
"""

import dataclasses

YES, NO = "✓", ""


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        name: name of its run directory and for `--rows`.
        labels: its cells in the table's label columns.
        config: name of its config.
        paper: published AP, AP50, AP75 in percent.
        changes: fields of `ModelConfig` beyond the config's.
    """

    name: str
    labels: tuple[str, ...]
    config: str
    paper: tuple[float, float, float]
    changes: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of the paper, whose rows differ in one setting each.

    Attributes:
        title: str.
        columns: headings of the labels.
        rows: `Row`s in the paper's order.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


def _loss_rows(name, method, config, focal, quality_focal, varifocal):
    """The three rows of a detector in Table 5, with their published AP, AP50, AP75."""
    losses = {
        "focal": ("FL", focal),
        "quality_focal": ("GFL", quality_focal),
        "varifocal": ("VFL", varifocal),
    }
    return tuple(
        Row(f"{name}_{loss}", (method, label), config, paper, {"class_loss": loss})
        for loss, (label, paper) in losses.items()
    )


_VFNET = "vfnet_r50_fpn_1x_coco"


def _setting(name, labels, paper):
    """A row of Table 2 with a config of its own."""
    return Row(name, labels, f"{_VFNET}_{name}", paper)


#: The ablations; numbers are those of the paper on COCO val2017, ResNet-50, 12 epochs.
TABLES = {
    "table2": Table(
        "Table 2: gamma, alpha and q weighting of the varifocal loss",
        ("gamma", "alpha", "q weighting"),
        (
            _setting("gamma1p0_alpha0p50", ("1.0", "0.50", YES), (41.2, 59.2, 44.7)),
            _setting("gamma1p5_alpha0p75", ("1.5", "0.75", YES), (41.5, 59.7, 45.1)),
            Row("gamma2p0_alpha0p75", ("2.0", "0.75", YES), _VFNET, (41.6, 59.5, 45.0)),
            _setting(
                "gamma2p0_alpha0p75_unweighted", ("2.0", "0.75", NO), (41.2, 59.1, 44.4)
            ),
            _setting("gamma2p5_alpha1p25", ("2.5", "1.25", YES), (41.5, 59.4, 45.2)),
            _setting("gamma3p0_alpha1p00", ("3.0", "1.00", YES), (41.3, 59.0, 44.7)),
        ),
    ),
    "table3": Table(
        "Table 3: the components of VFNet",
        ("method", "VFL", "star Dconv", "bbox refinement"),
        (
            Row(
                "raw",
                ("raw VFNet", NO, NO, NO),
                "vfnet_raw_r50_fpn_1x_coco",
                (39.0, 57.7, 41.8),
            ),
            Row(
                "raw_vfl",
                ("raw VFNet", YES, NO, NO),
                "vfnet_raw_vfl_r50_fpn_1x_coco",
                (40.1, 58.5, 43.4),
            ),
            Row(
                "star",
                ("VFNet", YES, YES, NO),
                "vfnet_star_r50_fpn_1x_coco",
                (40.7, 59.0, 44.0),
            ),
            Row("vfnet", ("VFNet", YES, YES, YES), _VFNET, (41.6, 59.5, 45.0)),
            Row(
                "fcos_atss",
                ("FCOS+ATSS", NO, NO, NO),
                "fcos_atss_r50_fpn_1x_coco",
                (39.2, 57.3, 42.4),
            ),
        ),
    ),
    "table5": Table(
        "Table 5: focal (FL), quality focal (GFL) and varifocal loss (VFL)",
        ("method", "loss"),
        (
            *_loss_rows(
                "retinanet",
                "RetinaNet",
                "vfl_retinanet_r50_fpn_4x4_1x_coco",
                (36.5, 55.5, 38.8),
                (37.3, 56.4, 40.0),
                (37.4, 56.5, 40.2),
            ),
            *_loss_rows(
                "foveabox",
                "FoveaBox",
                "vfl_fovea_r50_fpn_4x4_1x_coco",
                (36.3, 56.3, 38.3),
                (36.9, 56.0, 39.7),
                (37.2, 56.2, 39.8),
            ),
            *_loss_rows(
                "reppoints",
                "RepPoints",
                "vfl_reppoints_moment_r50_fpn_gn-neck+head_4x4_1x_coco",
                (38.3, 59.2, 41.1),
                (39.2, 59.8, 42.5),
                (39.7, 59.8, 43.1),
            ),
            *_loss_rows(
                "atss",
                "ATSS",
                "vfl_atss_r50_fpn_1x_coco",
                (39.3, 57.5, 42.5),
                (39.8, 57.7, 43.2),
                (40.2, 58.2, 44.0),
            ),
            *_loss_rows(
                "vfnet",
                "VFNet",
                _VFNET,
                (40.0, 58.0, 43.2),
                (41.1, 58.9, 42.2),
                (41.6, 59.5, 45.0),
            ),
        ),
    ),
}


@dataclasses.dataclass(frozen=True)
class Result:
    """Published numbers of a config.

    Attributes:
        val, test_dev: AP in percent on COCO val2017 and test-dev, or None.
        test_dev_large: AP on test-dev with images within 1800x1200, or None.
        source: str, table of the paper or repository.
        images_per_second: on a V100, measured by the authors, or None.
        checkpoint: name of a published file of weights, or None.
    """

    val: float | None = None
    test_dev: float | None = None
    source: str = "the official repository"
    images_per_second: float | None = None
    checkpoint: str | None = None
    test_dev_large: float | None = None


#: Table 4 by STEM of `vfnet_STEM_mstrain_2x_coco`: AP on val2017 (from the official
#: repository) and on test-dev, images per second, and the end of the file's name.
_TABLE_4 = {
    "r50_fpn": (44.5, 44.8, 19.3, "20201027-7cc75bd2"),
    "r50_fpn_mdconv_c3-c5": (47.8, 48.0, 16.3, "20201027pth-6879c318"),
    "r101_fpn": (46.2, 46.7, 15.6, "20201027pth-4a5d53f1"),
    "r101_fpn_mdconv_c3-c5": (49.0, 49.2, 12.6, "20201027pth-7729adb5"),
    "x101_32x4d_fpn": (47.4, 47.6, 13.1, None),
    "x101_32x4d_fpn_mdconv_c3-c5": (49.7, 50.0, 10.1, "20201027pth-d300a6fc"),
    "x101_64x4d_fpn": (48.2, 48.5, 9.2, None),
    "x101_64x4d_fpn_mdconv_c3-c5": (50.4, 50.8, 6.7, "20201027pth-b5f6da5e"),
    "r2_101_fpn": (49.2, 49.3, 13.0, None),
    "r2_101_fpn_mdconv_c3-c5": (51.1, 51.3, 10.3, None),
}

#: By config. Files with a date are mmdetection's copies of the authors' models.
RESULTS = {
    "vfnet_r50_fpn_1x_coco": Result(
        41.6,
        41.6,
        "Tables 2, 3, 5 (val2017) and the official repository (test-dev)",
        19.4,
        "vfnet_r50_fpn_1x_coco_20201027-38db6f58.pth, vfnet_r50_1x_41.6.pth",
    ),
    "vfnet_r101_fpn_1x_coco": Result(
        43.0,
        43.6,
        images_per_second=15.5,
        checkpoint="vfnet_r101_fpn_1x_coco_20201027pth-c831ece7.pth",
    ),
    "vfnet_r101_fpn_2x_coco": Result(43.5, 43.9, images_per_second=15.6),
    "vfnetx_r2_101_fpn_mdconv_c3-c5_mstrain_59e_coco": Result(
        None,
        53.7,
        "Table 4, VFNet-X-800; VFNet-X-1200, tested within 1800x1200, reaches 55.1",
        8.0,
        test_dev_large=55.1,
    ),
    "fcos_r50_fpn_gn-head_1x_coco": Result(
        38.7, source="FCOS's official code, with another variant of ResNet-50"
    ),
}
for _stem, (_val, _test_dev, _speed, _end) in _TABLE_4.items():
    _name = f"vfnet_{_stem}_mstrain_2x_coco"
    RESULTS[_name] = Result(
        _val,
        _test_dev,
        "Table 4 (test-dev) and the official repository (val2017)",
        _speed,
        _end and f"{_name}_{_end}.pth",
    )

#: Weights in millions, frozen ones too, without statistics of norms; 80 classes.
PARAMETERS = {
    "fcos_atss_r50_fpn_1x_coco": 32.3,
    "fcos_r50_fpn_gn-head_1x_coco": 32.3,
    "vfl_atss_r50_fpn_1x_coco": 32.3,
    "vfl_fovea_r50_fpn_4x4_1x_coco": 36.4,
    "vfl_reppoints_moment_r50_fpn_gn-neck+head_4x4_1x_coco": 36.8,
    "vfl_retinanet_r50_fpn_4x4_1x_coco": 38.0,
    "vfnet_r101_fpn_1x_coco": 51.9,
    "vfnet_r101_fpn_2x_coco": 51.9,
    "vfnet_r101_fpn_mdconv_c3-c5_mstrain_2x_coco": 53.9,
    "vfnet_r101_fpn_mstrain_2x_coco": 51.9,
    "vfnet_r2_101_fpn_mdconv_c3-c5_mstrain_2x_coco": 55.0,
    "vfnet_r2_101_fpn_mstrain_2x_coco": 52.6,
    "vfnet_r50_fpn_mdconv_c3-c5_mstrain_2x_coco": 33.9,
    "vfnet_r50_fpn_mstrain_2x_coco": 32.9,
    "vfnet_raw_r50_fpn_1x_coco": 32.3,
    "vfnet_raw_vfl_r50_fpn_1x_coco": 32.3,
    "vfnet_star_r50_fpn_1x_coco": 32.3,
    "vfnet_x101_32x4d_fpn_mdconv_c3-c5_mstrain_2x_coco": 55.5,
    "vfnet_x101_32x4d_fpn_mstrain_2x_coco": 51.5,
    "vfnet_x101_64x4d_fpn_mdconv_c3-c5_mstrain_2x_coco": 98.6,
    "vfnet_x101_64x4d_fpn_mstrain_2x_coco": 90.8,
    "vfnetx_r2_101_fpn_mdconv_c3-c5_mstrain_59e_coco": 75.6,
    # The rows of Table 2 differ in the loss alone.
    **{row.config: 32.9 for row in TABLES["table2"].rows},
}


def find_result(config_name):
    """The `Result` of a config; None if nothing was published."""
    if config_name in RESULTS:
        return RESULTS[config_name]
    found = [
        (row.paper[0], table.title.split(":")[0])
        for table in TABLES.values()
        for row in table.rows
        if row.config == config_name
        and row.changes.get("class_loss", "varifocal") == "varifocal"
    ]
    if not found:
        return None
    return Result(found[0][0], source=", ".join(title for _, title in found))
