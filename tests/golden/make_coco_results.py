"""Copies the COCO API's demo pair to `coco_results/`, without masks and captions.

Ground truth of 100 val2014 images (COCO annotations, CC BY 4.0) and the detections of
the COCO API's demo (BSD). Run: `python tests/golden/make_coco_results.py FOLDER`, the
folder with the two original files.
"""

import json
import sys
from pathlib import Path

KEEP = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")


def main(source):
    target = Path(__file__).parent / "coco_results"
    target.mkdir(exist_ok=True)
    truth = json.loads((source / "instances_val2014_100.json").read_text())
    small = {
        "images": [
            {key: image[key] for key in ("id", "height", "width")}
            for image in truth["images"]
        ],
        "categories": [
            {"id": category["id"], "name": category["name"]}
            for category in truth["categories"]
        ],
        "annotations": [
            {key: annotation[key] for key in KEEP}
            for annotation in truth["annotations"]
        ],
    }
    detections = "instances_val2014_fakebbox100_results.json"
    for name, content in (
        ("instances_val2014_100.json", small),
        (detections, json.loads((source / detections).read_text())),
    ):
        (target / name).write_text(json.dumps(content, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
