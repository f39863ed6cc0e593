import ast
import re
import runpy
from pathlib import Path

import pytest

from vfnet_tf.config import list_configs

ROOT = Path(__file__).resolve().parents[2]
PAPER = ROOT.parent / "shared" / "paper" / "varifocalnet.md"


@pytest.fixture(scope="module")
def zoo():
    return runpy.run_path(str(ROOT / "docs" / "model_zoo.py"))


def docstring(name):
    path = ROOT / "configs" / f"{name}.py"
    return ast.get_docstring(ast.parse(path.read_text("utf-8")))


def test_the_page_is_in_step_with_the_configs(zoo):
    page = (ROOT / "docs" / "model_zoo.md").read_text("utf-8")
    assert page == zoo["make_page"](), "run docs/model_zoo.py"


def test_every_published_config_has_one_row(zoo):
    rows = re.findall(r"^\| `(\S+)` \|", zoo["make_page"](), re.MULTILINE)
    assert sorted(rows) == [name for name in list_configs() if "_coco" in name]


def test_ap_has_two_sizes_of_vfnet_x_and_none_where_nothing_was_published(zoo):
    ap = zoo["published_ap"]
    assert ap("vfnet_r50_fpn_1x_coco") == ("41.6", "41.6")
    assert ap("vfnetx_r2_101_fpn_mdconv_c3-c5_mstrain_59e_coco") == ("", "53.7 / 55.1")
    assert ap("vfnet_r50_bccd") == ("", "")


@pytest.mark.skipif(not PAPER.exists(), reason="the paper is not beside this clone")
def test_ap_is_that_of_table_4_of_the_paper(zoo):
    # The second number is that of the wider range of scales, the published weights'.
    pattern = r"^VFNet\t(\S+)[^\t]*\t[\d.]+\t[\d.]+/([\d.]+)\t"
    paper = dict(re.findall(pattern, PAPER.read_text("utf-8"), re.MULTILINE))
    checked = 0
    for name in list_configs():
        row = re.search(r'the row\s"([\w-]+)" of Table 4', docstring(name))
        if row:
            assert zoo["published_ap"](name)[1] == paper[row[1]]
            checked += 1
    assert checked == len(paper) == 10
