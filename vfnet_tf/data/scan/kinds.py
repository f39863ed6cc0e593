"""The kinds of findings of `vfnet scan`: level, title and advice."""

import dataclasses
import re

from vfnet_tf.data import dataset
from vfnet_tf.data.images.inspect import IMAGE_SUFFIXES

#: Levels of a finding, worst first.
LEVELS = ("error", "warning", "note")

# P3 has stride 8: what is smaller falls between its points.
SMALL_SIDE = 8
COMMONLY_SMALL = 0.25
# Longer side by shorter side: such a box covers few points of any level.
ELONGATED = 10
MANY_OBJECTS = 300
RARE_CLASS = 10
IMBALANCE = 20
# Of two boxes that are one object. True neighbours, such as a rider and a horse, stay
# below it with few exceptions.
SAME_BOX_IOU = 0.9


@dataclasses.dataclass(frozen=True)
class FindingKind:
    """A kind of finding.

    Attributes:
        level: one of `LEVELS`. An error stops the training or makes its metrics
            worthless; a warning costs labels or accuracy; a note is for information.
        title: str, what was found.
        advice: str, its consequence and the remedy.
    """

    level: str
    title: str
    advice: str


_SEARCHED = ", ".join(sorted(IMAGE_SUFFIXES))
# A line with name, level and title, and below it the advice.
_TABLE = f"""\
unreadable_data, error: the dataset cannot be read
    Every command stops with this message.
unreadable_split, error: annotations cannot be read
    Whatever needs this split stops with this message.
no_usable_image, error: no image of the split can be used
    Whatever needs this split stops. The images are named below.
no_train_split, error: no training images
    There is nothing to train on.
no_train_boxes, error: no usable box in the training images
    Training stops.
missing_image, error: image file does not exist
    Training stops; --skip-bad-images goes on without it.
truncated_image, error: image file ends too early
    Copy it again; training stops, or --skip-bad-images goes on without it.
undecodable_image, error: image file cannot be decoded
    Training stops; --skip-bad-images goes on without it.
corrupt_image, error: image file is damaged inside
    Decoders fill or skip the damage silently: part of the picture is grey or displaced.
    Copy it again, or take it out.
tensorflow_cannot_decode, error: TensorFlow cannot decode the image
    Training would stop in the middle of an epoch. Save the image anew.
unsupported_format, error: image format is not supported
    Save it as 8-bit JPEG or PNG; training stops, or --skip-bad-images leaves it out.
size_conflict, error: image has another size than its annotation says
    Boxes would be in the wrong places. Often the labels were drawn before the image was
    resized, or on an image shown without its EXIF orientation.
bad_image_entry, error: image entry of the annotations is wrong
    Training stops, or --skip-bad-images leaves it out.
leakage, error: same or almost the same image in training and evaluation
    Metrics would be better than the detector is. Take it out of one split.
shared_by_evaluations, warning: same or almost the same image in val and test
    A choice made by val is then partly made by test.
duplicate_image, warning: same or almost the same image more than once in a split
    It weighs more than others, and its labels may contradict each other.
no_label_map, warning: TFRecords have no label map
    Classes are the texts of the objects in alphabetical order. A class that no object has
    is missing. Put label_map.pbtxt beside the records.
doubtful_labels, warning: labels contradict class texts or the list of classes
    Are these classes the right ones?
file_without_records, warning: file without a record
    Copy it again, unless it had none where it was written.
doubtful_orientation, warning: boxes of images that are stored turned (EXIF orientation)
    They are taken to be of the upright image, TensorFlow's own tools do not turn images.
    If the boxes below do not fit, write the records anew with images without EXIF.
no_validation_split, warning: no validation images
    No epoch can be measured, and the last weights are taken for the best.
bad_box, warning: box is not four finite numbers
    Training goes on without this box.
degenerate_box, warning: box without width, height or area
    Training goes on without this box.
outside_box, warning: box outside its image
    Training goes on without this box.
clipped_box, warning: box reaches outside its image
    It is cut at the border. Many of them: are the sizes those of these files?
subpixel_box, warning: box narrower than a pixel
    Training goes on without this box.
unknown_category, warning: box of a category not listed
    Training goes on without this box.
unknown_image, warning: box of an image not listed
    Training goes on without this box.
repeated_annotation, warning: annotation listed twice
    Training goes on without this box.
dropped_box, warning: box that cannot be used
    Training goes on without this box.
duplicate_box, warning: two boxes of a class on one object
    One of them is always a miss, or teaches two detections for one object.
conflicting_box, warning: boxes of two classes on one object
    Each teaches against the other, unless an object can be both.
small_image, warning: image with a side below {dataset.MIN_IMAGE_SIDE} pixels
    Training leaves it out.
dim_image, warning: image is almost black
    Of 16 bits the high byte is used. Values of 10, 12 or 14 bits must be scaled to fill
    the 16, or saved as 8-bit images.
many_objects, warning: more than {MANY_OBJECTS} objects in an image
    A detector returns 100 by default (max_detections), and COCO metrics count 100. Cut
    such images into tiles.
class_without_boxes, warning: class without any box
    Without boxes in train it is never learned, without boxes in val never measured.
similar_classes, warning: classes with names that look alike
    They differ only in blanks or case. Are they one class?
class_not_in_train, warning: boxes of classes that the training annotations do not list
    They are left out of the evaluation.
commonly_small_boxes, warning: many boxes are small at the training size
    Take a larger --image-size, or cut the images into tiles.
unused_labels, warning: label file that is not read
    There is no image of its name, or no list names it.
unread_image, warning: image file of an ending that folders are not searched for
    Save it as JPEG or PNG; folders are searched for {_SEARCHED}.
small_box, note: box is small at the training size
    Such objects are hard to find; a larger --image-size makes them larger.
elongated_box, note: box is more than {ELONGATED} times as long as wide
    Few points of the detector lie in it. Is it really one object?
class_imbalance, note: classes differ much in their number of boxes
    Look at the AP of each class, not at the mean alone.
image_without_objects, note: image without objects
    Training leaves it out, evaluation counts what is found in it as wrong. Was it
    labelled?
exif_orientation, note: image is stored turned (EXIF orientation)
    It is turned upright when read. See below whether the boxes fit.
distant_label_map, note: label map is not beside the records
    Are its classes those of these records?
background_item, note: label map has the item background
    It is no class: the Object Detection API keeps the id 0 for the background.
converted_format, note: image is neither JPEG nor PNG
    It is decoded in Python, which is slower; save it as JPEG or PNG.
unlisted_file, note: image file that no annotations list
    It is not used. Was it forgotten?
unused_split, note: list, file or folder of annotations that is not read
    Splits are called train, val (valid, validation) and test; of two names for one the
    first is read.
passed_over, note: file or link that is passed over
    It is no data: hidden, of the system or an archive, a pipe or a dead link.
"""


def _kinds(table):
    """Reads the table: dict name -> `FindingKind`."""
    kinds = {}
    for entry in re.split(r"\n(?! )", table.strip()):
        head, *advice = entry.split("\n    ")
        name, level, title = re.split(", |: ", head, maxsplit=2)
        kinds[name] = FindingKind(level, title, " ".join(advice))
    return kinds


#: Name of a kind, as in the json -> `FindingKind`.
KINDS = _kinds(_TABLE)

PROBLEM_KINDS = {
    dataset.BAD_BOX: "bad_box",
    dataset.BAD_SIZE: "degenerate_box",
    dataset.BAD_AREA: "degenerate_box",
    dataset.OUTSIDE: "outside_box",
    dataset.CLIPPED: "clipped_box",
    dataset.TINY: "subpixel_box",
    dataset.UNKNOWN_CATEGORY: "unknown_category",
    dataset.UNKNOWN_LABEL: "unknown_category",
    dataset.UNKNOWN_IMAGE: "unknown_image",
    dataset.DUPLICATE: "repeated_annotation",
}
