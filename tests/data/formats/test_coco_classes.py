import json
import pathlib

from vfnet_tf.data.formats.coco_classes import COCO_CATEGORY_IDS, COCO_CLASS_NAMES

GOLDEN = pathlib.Path(__file__).parents[2] / "golden" / "coco_results"


def test_names_and_ids_are_those_of_cocos_own_file():
    text = (GOLDEN / "instances_val2014_100.json").read_text(encoding="utf-8")
    categories = json.loads(text)["categories"]
    found = {category["id"]: category["name"] for category in categories}
    ours = dict(zip(COCO_CATEGORY_IDS, COCO_CLASS_NAMES, strict=True))
    assert ours == found
    assert list(COCO_CATEGORY_IDS) == sorted(found)
    assert len(set(COCO_CLASS_NAMES)) == 80
