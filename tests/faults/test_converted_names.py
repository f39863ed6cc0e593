"""Odd names are refused beforehand, with the name, or come back as they were."""

import collections
import json
import os
import unicodedata

import numpy as np
import pytest
from PIL import Image

from tests.fuzzing import inputs
from vfnet_tf.cli.__main__ import main
from vfnet_tf.data.formats.coco import read_coco
from vfnet_tf.data.formats.conversion import TARGETS, convert_dataset
from vfnet_tf.data.formats.readers import find_splits
from vfnet_tf.foreign_text import clipped, terminal_text

pytest.importorskip("yaml", reason="needs PyYAML, the extra yolo")

PIECES = ["a", "B", "é", "e\u0301", "猫", "🐈", "\u05d0", "\u202e", "\u200d", "\u00a0"]
PIECES += [
    " ",
    "\t",
    "\n",
    "\r",
    "\r\n",
    "\x0b",
    "\x0c",
    "\x1c",
    "\x1b[2J",
    "\x7f",
    "\x85",
]
PIECES += [
    "\u3000",
    "\u2028",
    "\u2029",
    "\ufeff",
    "\ufffe",
    "\uffff",
    "'",
    '"',
    "\\",
    "<",
]
PIECES += [
    "&",
    ">",
    "]]>",
    "#",
    "%41",
    "- ",
    ": ",
    ",",
    ";",
    "$",
    "_",
    "^",
    "{",
    "[",
    "*",
]
PIECES += [
    "?",
    "!",
    "nan",
    "null",
    "no",
    "1.5",
    "=1+1",
    "@",
    "+",
    ".",
    "..",
    ".png",
    ".xml",
]
PIECES += [".xml", ".jpg", "train"]
WHOLE = ["", " ", ".", "nan", "NA", "no", "null", "~", "1", "1.0", "-1", "train", "val"]


def random_name(rng, longest=5):
    if rng.random() < 0.1:
        return WHOLE[rng.integers(len(WHOLE))]
    return "".join(rng.choice(PIECES, rng.integers(1, longest)))


def like(name, rng):
    """Another name, or one that some system takes for the same."""
    forms = [name.upper(), name.lower(), f" {name}", f"{name}\n", name, f"{name}.png"]
    forms += [unicodedata.normalize(form, name) for form in ("NFC", "NFD", "NFKC")]
    return rng.choice([*forms, random_name(rng), random_name(rng)])


def write_source(folder, class_names, image_names):
    """A COCO folder whose train and val have the images alternately; k has class k."""
    content = collections.defaultdict(list)
    content["categories"] = [
        {"id": k + 1, "name": n} for k, n in enumerate(class_names)
    ]
    parts = {"train": {**content}, "val": {**content}}
    for k, name in enumerate(image_names):
        split = ("train", "val")[k % 2]
        (folder / split).mkdir(exist_ok=True)
        Image.new("RGB", (40 + k, 40)).save(folder / split / name, "PNG")
        part = parts[split]
        part["images"] = [*part.get("images", []), {"id": k + 1, "file_name": name}]
        box = {"id": k + 1, "image_id": k + 1, "bbox": [k, 2, 10, 10]}
        box["category_id"] = 1 + k % len(class_names)
        part["annotations"] = [*part.get("annotations", []), box]
    (folder / "annotations").mkdir()
    for split, part in parts.items():
        (folder / "annotations" / f"{split}.json").write_text(json.dumps(part))


def read(place):
    """dict split -> (class names, list of name, width, label names, boxes)."""
    found = {}
    splits = find_splits(place)
    for split in splits:
        dataset = read_coco(*splits[split], training=False)
        rows = [
            (
                record.width,
                os.path.basename(record.path),
                [dataset.class_names[label] for label in record.labels],
                record.boxes.round(1).tolist(),
            )
            for record in dataset
        ]
        found[split] = (dataset.class_names, sorted(rows))
    return found


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.fuzz
def test_random_names_are_refused_or_come_back(tmp_path, target):
    rng = np.random.default_rng(5)
    counts = collections.Counter()
    for case in range(inputs(80)):
        odd_classes = case % 2 == 0
        classes, images = ["cell", "dog"], ["plain.png", "other.png"]
        name = random_name(rng).replace("/", "")
        if odd_classes:
            classes = [name, like(name, rng)]
        else:
            images = [
                f"{name}.png",
                f"{like(name, rng)}{('.png', '.jpg')[case % 4 // 2]}",
            ]
        source = tmp_path / f"s{case}"
        source.mkdir()
        try:
            write_source(source, classes, images)
            before = read(source)
        except (ValueError, OSError):
            counts["unreadable"] += 1
            continue
        out = tmp_path / f"t{case}"
        try:
            convert_dataset(find_splits(source), target, out)
        except ValueError as error:
            counts["refused"] += 1
            wrong = before["train"][0] if odd_classes else images
            assert any(clipped(name) in str(error) for name in wrong)
            assert terminal_text(str(error)) == str(error)
            assert not out.exists()
            continue
        counts["equal"] += 1
        after = read(out)
        for split, (_, rows) in after.items():
            # The second of two images of one name gets its split in front.
            second = f"{split}_{images[1]}"
            rows[:] = [(w, images[1] if n == second else n, *r) for w, n, *r in rows]
        assert after == before, (classes, images)
    assert counts["equal"] > 10 and counts["unreadable"] < 60, counts


def test_images_outside_and_formulas_are_said(tmp_path, capsys):
    source, outside = tmp_path / "source", tmp_path / "private"
    source.mkdir()
    outside.mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (40, 40)).save(outside / name)
    write_source(source, ["=1+1", "dog"], ["in.png", "also.png"])
    path = source / "annotations" / "train.json"
    content = json.loads(path.read_text())
    names = [str(outside / "a.png"), "../../private/b.png"]
    content["images"] += [
        {"id": 10 + k, "file_name": name} for k, name in enumerate(names)
    ]
    path.write_text(json.dumps(content))
    arguments = ["convert-data", str(source), "--to"]
    assert main([*arguments, "csv", "--out", str(tmp_path / "csv")]) == 0
    printed = capsys.readouterr().out
    assert "2 images lie outside of the dataset's folder" in printed
    assert str(outside / "a.png") in printed
    assert "note       a spreadsheet may take ['=1+1'] for formulas" in printed
    path.write_text(json.dumps({**content, "images": content["images"][:1]}))
    assert main([*arguments, "coco", "--out", str(tmp_path / "coco")]) == 0
    assert "note" not in capsys.readouterr().out
