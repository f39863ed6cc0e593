import json

import numpy as np
import pytest
from PIL import Image

from vfnet_tf.data.coco import find_coco_splits, read_coco
from vfnet_tf.data.readers import find_format, find_splits


@pytest.fixture
def root(tmp_path):
    """A folder with two images and a file of each format, for one box."""
    root = tmp_path / "set"
    root.mkdir()
    for name in "ab":
        Image.fromarray(np.zeros((50, 100, 3), "uint8")).save(root / f"{name}.png")
    content = {
        "images": [{"id": 4, "file_name": "a.png", "height": 50, "width": 100}],
        "annotations": [
            {"id": 1, "image_id": 4, "category_id": 3, "bbox": [10, 20, 30, 20]}
        ],
        "categories": [{"id": 3, "name": "cat"}],
    }
    (root / "instances_train2017.json").write_text(json.dumps(content))
    (root / "data.yaml").write_text("names: [cat]\ntrain: train.txt\n")
    (root / "train.txt").write_text("a.png\n")
    (root / "a.txt").write_text("0 0.25 0.6 0.3 0.4\n")
    (root / "a.xml").write_text(
        "<annotation><object><name>cat</name><bndbox><xmin>11</xmin><ymin>21</ymin>"
        "<xmax>40</xmax><ymax>40</ymax></bndbox></object></annotation>"
    )
    (root / "boxes.csv").write_text("a.png,10,20,40,40,cat\n")
    return root


FILES = {
    "coco": "instances_train2017.json",
    "yolo": "data.yaml",
    "voc": "a.xml",
    "csv": "boxes.csv",
}


@pytest.mark.parametrize("kind", FILES)
def test_each_format_gives_the_same_box_and_a_prefix_forces_it(root, kind):
    splits = find_splits(f"{kind}:{root}")
    assert splits.format == kind and list(splits) == ["train"]
    (record,) = dataset = read_coco(*splits["train"], strict=True)
    np.testing.assert_allclose(record.boxes, [[10, 20, 40, 40]], atol=1e-5)
    assert dataset.class_names == ("cat",)


def test_the_format_is_found_out_and_others_are_told(root):
    left = list(FILES)
    while left:
        kind, path, others = find_format(root)
        assert (kind, path, others) == (left[0], str(root), left[1:])
        description = find_splits(root).description
        for other in others:
            assert f"{other}:{root}" in description
        (root / FILES[left.pop(0)]).unlink()
    with pytest.raises(ValueError, match="one of the formats of docs/data.md"):
        find_format(root)


def test_a_file_goes_by_its_suffix(root):
    for kind in ("coco", "yolo", "csv"):
        assert find_format(root / FILES[kind]) == (kind, str(root / FILES[kind]), [])
    with pytest.raises(ValueError, match=r"which holds a\.png"):
        find_format(root / "a.png")
    with pytest.raises(ValueError, match="must be an existing folder or file"):
        find_format(f"voc:{root}/nowhere")


def test_a_coco_folder_is_read_as_ever_and_a_single_json_is_any_split(root):
    assert dict(find_splits(root)) == find_coco_splits(root)
    splits = find_splits(root / FILES["coco"])
    assert list(splits) == ["train"]
    assert splits.locate("val") == (str(root / FILES["coco"]), None)
    with pytest.raises(ValueError, match="must have the split 'val'"):
        find_splits(root).locate("val")


def test_the_json_is_written_when_asked_for_and_named_by_its_content(root, own_cache):
    splits = find_splits(f"csv:{root}")
    assert len(splits) == 1 and not own_cache.exists()
    first, folder = splits["train"]
    assert folder == str(root) and splits.locate("train") == (first, folder)
    assert find_splits(f"csv:{root}")["train"] == (first, folder)
    (root / "boxes.csv").write_text("a.png,10,20,40,41,cat\n")
    second, _ = find_splits(f"csv:{root}")["train"]
    assert first != second
    files = sorted(str(path) for path in (own_cache / "annotations").iterdir())
    assert files == sorted([first, second])
