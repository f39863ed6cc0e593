import re
from pathlib import Path

import pytest

import vfnet_tf

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def citation():
    yaml = pytest.importorskip("yaml", reason="PyYAML comes with the extra docs")
    return yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))


def test_it_describes_this_version_of_the_software(citation):
    setup = (ROOT / "setup.py").read_text("utf-8")
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] == "software"
    assert citation["version"] == vfnet_tf.__version__
    assert citation["license"] == re.search(r'license="(.+)"', setup)[1]
    assert citation["authors"] == [{"name": "The vfnet_tf authors"}]
    assert citation["title"].startswith("vfnet_tf") and citation["message"]


def test_it_refers_to_the_paper(citation):
    (paper,) = citation["references"]
    names = [f"{a['given-names']} {a['family-names']}" for a in paper["authors"]]
    assert paper["type"] == "conference-paper"
    assert paper["title"] == "VarifocalNet: An IoU-aware Dense Object Detector"
    assert names == ["Haoyang Zhang", "Ying Wang", "Feras Dayoub", "Niko Sünderhauf"]
    assert paper["year"] == 2021 and paper["conference"]["name"] == "CVPR 2021"
    assert paper["url"].endswith("/2008.13367")
