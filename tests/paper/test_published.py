import gzip
import json
import math
import pathlib
import re

import pytest

from vfnet_tf.config import config_files
from vfnet_tf.paper.published import PARAMETERS, RESULTS, TABLES, find_result

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
PAPER = pathlib.Path(__file__).parents[3] / "shared" / "paper" / "varifocalnet.md"
#: Statistics of norms are no weights.
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def test_results_are_of_configs_that_exist():
    assert set(RESULTS) | set(PARAMETERS) <= set(config_files())
    rows = [row for table in TABLES.values() for row in table.rows]
    assert {row.config for row in rows} <= set(config_files())


def test_the_configs_say_the_same_as_the_data():
    compared = 0
    for name, path in config_files().items():
        text = " ".join(path.read_text("utf-8").split('"""')[1].split())
        result = find_result(name)
        val = re.search(r"Published AP: ([\d.]+) on COCO val2017", text)
        assert (val is None) == (result is None or result.val is None), name
        if val:
            compared += 1
            assert float(val[1]) == result.val, name
        test_dev = re.search(r"([\d.]+) on test-dev", text)
        if test_dev:
            assert float(test_dev[1]) == result.test_dev, name
        speed = re.search(r"([\d.]+) images per second on a V100", text)
        if speed:
            assert float(speed[1]) == result.images_per_second, name
    assert compared == 27


def test_a_result_is_found_with_the_tables_that_it_stands_in():
    result = find_result("vfnet_raw_r50_fpn_1x_coco")
    assert (result.val, result.test_dev, result.source) == (39.0, None, "Table 3")
    assert find_result("vfl_atss_r50_fpn_1x_coco").val == 40.2  # not the focal loss's
    assert find_result("vfnet_r50_bccd") is None


def test_no_number_stands_in_two_ways():
    for table in TABLES.values():
        for row in table.rows:
            if row.config in RESULTS and not row.changes:
                assert row.paper[0] == RESULTS[row.config].val


@pytest.mark.skipif(
    not PAPER.is_file(), reason="the paper's text is not beside the clone"
)
def test_table_4_is_the_papers():
    paper = {}
    for line in PAPER.read_text("utf-8").splitlines():
        cells = line.split("\t")
        if cells[0].startswith("VFNet") and len(cells) == 9:
            backbone = cells[1].split(" ")[0]
            ap = cells[3].replace("<b>", "").replace("</b>", "").split("/")[-1]
            paper[cells[0], backbone] = float(cells[2]), float(ap)
    stems = {
        "r50_fpn": "R-50",
        "r101_fpn": "R-101",
        "x101_32x4d_fpn": "X-101-32x4d",
        "x101_64x4d_fpn": "X-101-64x4d",
        "r2_101_fpn": "R2-101",
    }
    for stem, backbone in stems.items():
        for dcn, suffix in (("", ""), ("_mdconv_c3-c5", "-DCN")):
            result = RESULTS[f"vfnet_{stem}{dcn}_mstrain_2x_coco"]
            expected = paper["VFNet", backbone + suffix]
            assert (result.images_per_second, result.test_dev) == expected
    result = RESULTS["vfnetx_r2_101_fpn_mdconv_c3-c5_mstrain_59e_coco"]
    assert (result.images_per_second, result.test_dev) == (8.0, 53.7)
    assert paper["VFNet-X-1200", "R2-101-DCN"] == (4.2, 55.1)


def stored_states():
    """Names of the official weights by config."""
    for path in GOLDEN.glob("*/*_state.json.gz"):
        with gzip.open(path) as file:
            yield path.name.removesuffix("_state.json.gz"), json.load(file)
    text = (GOLDEN / "vfnet_r50_state.json").read_text("utf-8")
    yield "vfnet_r50_fpn_1x_coco", json.loads(text)


def test_numbers_of_weights_are_those_of_the_official_files():
    compared = 0
    for name, state in stored_states():
        sizes = [math.prod(s) for key, s, _ in state if not key.endswith(STATISTICS)]
        assert round(sum(sizes) / 1e6, 1) == PARAMETERS[name], name
        compared += 1
    assert compared == 16


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["fcos_atss_r50_fpn_1x", "fcos_r50_fpn_gn-head_1x", "vfnet_star_r50_fpn_1x"]
)
def test_numbers_of_weights_without_an_official_file_are_those_of_keras(name):
    from vfnet_tf.builder import build_detector

    weights = build_detector(f"{name}_coco").weights
    counted = [w for w in weights if w.name not in ("moving_mean", "moving_variance")]
    total = sum(math.prod(weight.shape) for weight in counted)
    assert round(total / 1e6, 1) == PARAMETERS[f"{name}_coco"]
