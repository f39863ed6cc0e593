import pytest

from vfnet_tf.cli.__main__ import main
from vfnet_tf.data.formats.readers import read_split


def test_a_set_is_converted_and_what_was_read_and_written_is_said(
    data, tmp_path, capsys
):
    out = tmp_path / "out"
    assert main(["convert-data", str(data), "--to", "voc", "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert f"format     COCO json, {data}: val\n" in said.out
    assert (
        "read       7 images with 21 boxes of 3 classes (disc, square, star)"
        in said.out
    )
    assert "lost       1 images are turned by their EXIF orientation" in said.out
    assert f"written    {out}: voc, 7 images, 21 boxes\n" in said.out
    assert "7/7 images" in said.err
    assert not (out / "JPEGImages" / "a.jpg").is_symlink()


def test_what_was_converted_is_evaluated_on_its_own(data, tmp_path, capsys):
    """The commands that evaluate read other formats with the detector's class order."""
    out = tmp_path / "out"
    arguments = ["--to", "csv", "--out", str(out), "--images", "link"]
    assert main(["convert-data", str(data), *arguments]) == 0
    names = ("star", "disc", "square")
    file = f"{out}/annotations.csv"
    dataset = read_split(f"csv:{file}", class_names=names, limit=2, log=print)
    assert len(dataset) == 2 and dataset[0].labels.tolist() == [1, 2, 0]
    assert f"format     CSV, {out}/annotations.csv: val\n" in capsys.readouterr().out


def test_a_split_that_is_left_out_is_said_with_status_1(data, tmp_path, capsys):
    source = tmp_path / "set"
    (source / "annotations").mkdir(parents=True)
    (source / "val").symlink_to(data / "val")
    (source / "annotations/val.json").symlink_to(
        data / "annotations" / "instances_val.json"
    )
    (source / "annotations/test.json").write_text("{oops")
    out = tmp_path / "out"
    assert main(["convert-data", str(source), "--to", "csv", "--out", str(out)]) == 1
    said = capsys.readouterr()
    assert f"written    {out}: csv, 7 images, 21 boxes\n" in said.out
    assert "error: the split test was left out: The annotation file must be" in said.err


@pytest.mark.parametrize(
    ("source", "out", "message"),
    [
        ("DATA", "DATA", "The target must be a folder that is absent or empty"),
        ("nowhere", "new", "--data must be an existing folder or file"),
        ("tfds:nothing", "new", "The dataset must be prepared in"),
    ],
)
def test_mistakes_are_one_message(source, out, message, mistake, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", "prepared")
    assert message in mistake("convert-data", source, "--to", "csv", "--out", out)
