import json
import pathlib
import subprocess
import sys

import pytest

from tests import planted_defects
from vfnet_tf.cli.__main__ import main
from vfnet_tf.cli.scan import default_out, format_summary
from vfnet_tf.data.scan.findings import Finding, ScanResult
from vfnet_tf.data.scan.kinds import KINDS

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    root = tmp_path_factory.mktemp("planted")
    planted_defects.write(root)
    return root


def write_clean(root, doubled=False):
    """Two splits without any finding, or with two boxes on one object."""
    for number, split in enumerate(("train", "val")):
        writer = planted_defects.Split(root, split, number)
        writer.content["categories"] = [{"id": 1, "name": "cell"}]
        boxes = [(12 * place, 20, 10, 12) for place in range(10)]
        writer.add("a.jpg", 100 + number, boxes + boxes[:doubled])
        writer.save()
    return root


def scan(*arguments):
    size = ["--image-size", "200", "260", "--no-tensorflow"]
    return main(["scan", *(str(argument) for argument in arguments), *size])


def test_a_clean_set_is_safe_and_leaves_a_report_beside_the_runs(tmp_path, capsys):
    data = write_clean(tmp_path / "my cells")
    assert scan(data) == 0
    out = pathlib.Path("runs/scan_my_cells")
    assert sorted(path.name for path in out.iterdir()) == ["scan.html", "scan.json"]
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[-1] == "safe to train on: 0 errors, 0 warnings, 0 notes"
    assert lines[0] == f"format     COCO json, {data}: train, val"
    assert lines[1].startswith("train      1 of 1 images, smallest sides 100x130")
    assert "10 boxes of 1 classes; at 200x260 sides from 24x20" in lines[2]
    assert (
        "1/1 images" in captured.err
        and "images" not in captured.err.splitlines()[-1][9:12]
    )
    numbers = json.loads((out / "scan.json").read_text())
    assert numbers["data"] == str(data) and numbers["is_safe"] is True
    assert numbers["config"] == "vfnet_r50_fpn_1x_coco"
    assert numbers["image_size"] == [200, 260]


def test_errors_make_the_status_1_and_page_and_json_name_them(
    planted, tmp_path, capsys
):
    assert scan(planted, "--out", tmp_path / "report") == 1
    text = capsys.readouterr().out
    assert text.splitlines()[-1].startswith("not safe to train on: 11 errors, ")
    assert "error      image file does not exist: 1\n" in text
    assert "             train: missing.jpg does not exist\n" in text
    page = (tmp_path / "report" / "scan.html").read_text()
    found = json.loads((tmp_path / "report" / "scan.json").read_text())["findings"]
    for kind in {finding["kind"] for finding in found}:
        assert KINDS[kind].title in text
    for name in ("missing.jpg", "leak.jpg = val: leaked.jpg", "in boxes.jpg (0)"):
        assert name in page
    assert page.count("data:image/jpeg") > 20 and "<script" not in page


def test_warnings_count_if_strict(tmp_path, capsys):
    data = write_clean(tmp_path / "data", doubled=True)
    assert scan(data) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("safe ")
    assert scan(data, "--strict") == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "not safe to train on (--strict): 0 errors, 2 warnings, 0 notes"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "must be an existing folder"),
        (["."], "must be in one of the formats"),
        (["DATA", "--config", "nothing"], "nothing"),
        (["DATA", "--small-side", "-1"], "small_side=-1"),
        (["DATA", "--threads", "-2"], "num_threads=-2"),
    ],
)
def test_mistakes_are_one_message_and_status_2(arguments, message, mistake):
    arguments += ["--out", "report", "--no-tensorflow"]
    assert message in mistake("scan", *arguments)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("data.yaml", "names: [a\ntrain: x\n", "The file must be valid yaml"),
        ("d.csv", "split,image,x1,y1,x2,y2,label\nmine,a.png,1,1,9,9,a\n", "'mine'"),
    ],
)
def test_data_that_cannot_be_read_is_a_finding(tmp_path, capsys, name, text, message):
    data = tmp_path / "data"
    data.mkdir()
    (data / name).write_text(text)
    assert scan(data, "--out", "report") == 1
    said = capsys.readouterr().out
    assert "error      the dataset cannot be read: 1\n" in said and message in said
    (finding,) = json.loads(pathlib.Path("report/scan.json").read_text())["findings"]
    assert finding["kind"] == "unreadable_data" and message in finding["text"]
    assert (
        message.replace("'", "&#x27;") in pathlib.Path("report/scan.html").read_text()
    )


def test_nothing_is_written_into_the_data_unless_asked(tmp_path, monkeypatch, capsys):
    data = write_clean(tmp_path / "data")
    before = sorted(data.rglob("*"))
    monkeypatch.chdir(data)
    assert scan(".") == 2
    assert "say with --out where it should be" in capsys.readouterr().err
    assert sorted(data.rglob("*")) == before
    assert scan(".", "--out", "report") == 0
    assert (data / "report" / "scan.json").is_file()
    monkeypatch.chdir(tmp_path)
    assert default_out("data") == pathlib.Path("runs/scan_data")


def test_the_summary_shows_three_findings_of_a_kind_and_short_lines():
    findings = [Finding("bad_box", "train", "word " * 100) for _ in range(5)]
    text = format_summary(ScanResult((800, 1333), 8, {}, findings))
    lines = text.splitlines()
    assert lines[0] == "warning    box is not four finite numbers: 5"
    assert len(lines) == 5 and lines[-1].strip() == "and 2 more"
    assert all(len(line) <= 213 for line in lines) and lines[1].endswith("word ...")
    # The end of an error names the file.
    (finding,) = [Finding("unreadable_split", "val", "word " * 100 + "val.json")]
    text = format_summary(ScanResult((800, 1333), 8, {}, [finding]))
    assert text.endswith("word val.json")


def test_without_tensorflow_none_is_loaded(tmp_path):
    data = write_clean(tmp_path / "data")
    code = (
        "import sys\nfrom vfnet_tf.cli.__main__ import main\n"
        f"status = main(['scan', {str(data)!r}, '--no-tensorflow'])\n"
        "print(status, 'tensorflow' in sys.modules)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin"},
        capture_output=True,
        text=True,
    )
    assert answer.stdout.splitlines()[-1] == "0 False", answer.stderr
