"""A COCO-format folder with all defects that a scan finds."""

import io
import json
import zlib

from PIL import Image

from tests.tiny_run import picture

CLASSES = {1: "cell", 2: "platelet", 3: "Cell"}

#: Kind -> parts of its texts; without the kinds that stop a whole split.
EXPECTED = {
    "missing_image": ["missing.jpg does not exist"],
    "truncated_image": ["cut.jpg"],
    "undecodable_image": ["text.jpg is not an image", "empty.jpg is empty"],
    "corrupt_image": [
        "checksum.png is corrupt: the checksum of IDAT at byte",
        "grey.jpg is corrupt: its coded data end before the picture does",
    ],
    "tensorflow_cannot_decode": ["unknown.png TensorFlow cannot decode it: "],
    "unsupported_format": ["moving.gif is GIF"],
    "size_conflict": ["resized.jpg is 60 high and 80 wide"],
    "bad_image_entry": ["minus.jpg must have an integer id"],
    "leakage": [
        "leak.jpg = val: leaked.jpg (the same file)",
        "photo.jpg = val: photo_",
    ],
    "shared_by_evaluations": ["val: shared.jpg = test: shared.jpg"],
    "duplicate_image": ["twin_1.jpg = train: twin_2.jpg"],
    "bad_box": ["in boxes.jpg ([1, 2, None, 4])"],
    "degenerate_box": ["in boxes.jpg ([10, 10, -5, 8])", "in boxes.jpg (0)"],
    "outside_box": ["in boxes.jpg ([200, 10, 20, 20])"],
    "clipped_box": ["in boxes.jpg ([100, 70, 60, 60])"],
    "subpixel_box": ["in boxes.jpg ([10, 10, 0.5, 9])"],
    "unknown_category": ["in boxes.jpg (category id 77)"],
    "unknown_image": ["(image id 999)"],
    "repeated_annotation": ["annotation 1 (image id"],
    "duplicate_box": ["pairs.jpg: cell (annotation", "and cell (annotation"],
    "conflicting_box": ["pairs.jpg: cell (annotation", "and platelet (annotation"],
    "small_image": ["stamp.png"],
    "dim_image": ["deep.png: no pixel is brighter than 1"],
    "many_objects": ["crowded.jpg"],
    "class_without_boxes": ["1 of 3 classes: Cell"],
    "similar_classes": ["'cell', 'Cell'"],
    "class_not_in_train": ["in foreign.jpg (stranger)"],
    "commonly_small_boxes": ["boxes (9"],
    "small_box": ["have a side below 8 pixels at the training size 128x160"],
    "elongated_box": ["1 of"],
    "class_imbalance": ["platelet (1)"],
    "image_without_objects": ["nothing.jpg"],
    "exif_orientation": ["turned.jpg"],
    "converted_format": ["plain.bmp"],
    "unlisted_file": ["forgotten.jpg"],
    "unread_image": ["phone.heic"],
    "passed_over": ["._good.jpg (is hidden or of the system)"],
}


class Split:
    """One split of a COCO-format folder, put together image by image."""

    def __init__(self, root, name, number):
        self.folder = root / name
        self.folder.mkdir(parents=True)
        self.file = root / "annotations" / f"instances_{name}.json"
        # Ids differ between files, so that mix-ups show.
        self.first = 1000 * number
        self.content = {
            "images": [],
            "annotations": [],
            "categories": [{"id": i, "name": n} for i, n in CLASSES.items()],
        }

    def add(self, name, content, boxes=((20, 20, 60, 50),), size=(100, 130), **changes):
        """An image of bytes or by the seed of its pixels; boxes are COCO's."""
        if isinstance(content, int):
            content = encoded(content, *size, format=changes.pop("format", "JPEG"))
        if content is not None:
            (self.folder / name).write_bytes(content)
        number = self.first + len(self.content["images"])
        entry = {"id": number, "file_name": name, "height": size[0], "width": size[1]}
        self.content["images"].append({**entry, **changes})
        for box in boxes:
            self.box(list(box), image_id=number)
        return content

    def box(self, bbox, **changes):
        number = len(self.content["annotations"]) + 1
        entry = {"id": number, "category_id": 1, "bbox": bbox, **changes}
        entry.setdefault("image_id", self.content["images"][-1]["id"])
        self.content["annotations"].append(entry)

    def save(self):
        self.file.parent.mkdir(exist_ok=True)
        self.file.write_text(json.dumps(self.content))


def encoded(seed, height=100, width=130, image=None, **options):
    """Bytes of `picture(seed)`, or of a PIL image."""
    stream = io.BytesIO()
    image = image or Image.fromarray(picture(seed, height, width))
    image.save(stream, **{"format": "JPEG", "quality": 92, **options})
    return stream.getvalue()


def write(root):
    """Writes the folder: train, val and test, as `find_coco_splits` expects."""
    train, val, test = (
        Split(root, name, number)
        for number, name in enumerate(("train", "val", "test"))
    )
    whole = train.add("good.jpg", 0)
    train.add("missing.jpg", None)
    train.add("cut.jpg", encoded(1)[:1500])
    train.add("text.jpg", b"not an image")
    train.add("empty.jpg", b"")
    png = encoded(2, format="PNG")
    train.add("checksum.png", png[:-16] + b"oops" + png[-12:])
    # PIL passes over a chunk that it does not know, even if its name says necessary.
    chunk = b"NEWS"
    chunk = bytes(4) + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    train.add("unknown.png", png[:33] + chunk + png[33:])
    whole_photo = encoded(20)
    train.add("grey.jpg", whole_photo[: len(whole_photo) // 2] + b"\xff\xd9")
    deep = Image.fromarray(picture(21, 100, 130)[..., 0].astype("uint16") << 4)
    train.add("deep.png", encoded(21, image=deep, format="PNG"))
    train.add("moving.gif", encoded(3, format="GIF"))
    train.add("resized.jpg", encoded(4, 60, 80))
    train.add("minus.jpg", 5, id=-5, boxes=())
    twin = train.add("twin_1.jpg", 6)
    train.add("twin_2.jpg", twin)
    train.add("stamp.png", 7, [(2, 2, 12, 12)], (20, 24), format="PNG")
    crowd = [(30 * x + 2, 24 * y + 2, 12, 10) for x in range(20) for y in range(16)]
    train.add("crowded.jpg", 8, crowd, (400, 620))
    train.add("nothing.jpg", 9, boxes=())
    lying = Image.fromarray(picture(10, 100, 130)).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    train.add("turned.jpg", encoded(10, image=lying, exif=exif))
    train.add("plain.bmp", 11, format="BMP")
    train.add("boxes.jpg", 12)
    train.box([1, 2, None, 4])
    train.box([10, 10, -5, 8])
    train.box([10, 10, 30, 30], area=0)
    train.box([200, 10, 20, 20])
    train.box([100, 70, 60, 60])
    train.box([10, 10, 0.5, 9])
    train.box([10, 10, 9, 9], category_id=77)
    train.box([10, 10, 9, 9], image_id=999)
    train.content["annotations"].append(train.content["annotations"][0])
    train.add("pairs.jpg", 13, [(10, 10, 50, 50), (10, 10, 50, 49)])
    train.box([70, 10, 50, 50])
    train.box([70, 10, 50, 50], category_id=2)
    train.add("long.jpg", 14, [(5, 5, 110, 9.5)])
    leak = train.add("leak.jpg", 15)
    train.add("photo.jpg", 16, size=(400, 500))
    (train.folder / "forgotten.jpg").write_bytes(encoded(17))
    (train.folder / "phone.heic").write_bytes(b"what a telephone writes")
    (train.folder / "._good.jpg").write_bytes(b"what an archive adds")

    val.add("leaked.jpg", leak)
    photo = Image.open(io.BytesIO(encoded(16, 400, 500)))
    small = photo.resize((250, 200), Image.Resampling.BILINEAR)
    val.add("photo_small.jpg", encoded(16, image=small, quality=70), size=(200, 250))
    shared = val.add("shared.jpg", 18)
    val.add("foreign.jpg", 19)
    val.content["categories"].append({"id": 4, "name": "stranger"})
    val.box([10, 10, 30, 30], category_id=4)
    val.box([10, 10, 30, 30], category_id=2)
    test.add("shared.jpg", shared)
    test.box([10, 10, 30, 30], category_id=2)
    for split in (train, val, test):
        split.save()
    return whole
