"""The kinds of findings of `vfnet scan`: level, title and advice."""

import dataclasses

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
class Kind:
    """A kind of finding.

    Attributes:
        level: one of `LEVELS`. An error stops the training or makes its metrics worth
            nothing; a warning costs labels or accuracy; a note is good to know.
        title: str, what it is.
        advice: str, what follows from it and what to do.
    """

    level: str
    title: str
    advice: str


_DROPPED = "Training goes on without this box."
#: Name of a kind, as in the json -> `Kind`.
KINDS = {
    "unreadable_data": Kind(
        "error", "the dataset cannot be read", "Every command stops with this message."
    ),
    "unreadable_split": Kind(
        "error",
        "annotations cannot be read",
        "Whatever needs this split stops with this message.",
    ),
    "no_usable_image": Kind(
        "error",
        "no image of the split can be used",
        "Whatever needs this split stops. The images are named below.",
    ),
    "no_train_split": Kind(
        "error", "no training images", "There is nothing to train on."
    ),
    "no_train_boxes": Kind(
        "error", "no usable box in the training images", "Training stops."
    ),
    "missing_image": Kind(
        "error",
        "image file does not exist",
        "Training stops; --skip-bad-images goes on without it.",
    ),
    "truncated_image": Kind(
        "error",
        "image file ends too early",
        "Copy it again; training stops, or --skip-bad-images goes on without it.",
    ),
    "undecodable_image": Kind(
        "error",
        "image file cannot be decoded",
        "Training stops; --skip-bad-images goes on without it.",
    ),
    "corrupt_image": Kind(
        "error",
        "image file is damaged inside",
        "Decoders fill or skip what is wrong without a word: part of the picture is grey "
        "or displaced. Copy it again, or take it out.",
    ),
    "tensorflow_cannot_decode": Kind(
        "error",
        "TensorFlow cannot decode the image",
        "Training would stop in the middle of an epoch. Save the image anew.",
    ),
    "unsupported_format": Kind(
        "error",
        "image format is not supported",
        "Save it as 8-bit JPEG or PNG; training stops, or --skip-bad-images leaves it "
        "out.",
    ),
    "size_conflict": Kind(
        "error",
        "image has another size than its annotation says",
        "Boxes would be in the wrong places. Often the labels were drawn before the "
        "image was resized, or on an image shown without its EXIF orientation.",
    ),
    "bad_image_entry": Kind(
        "error",
        "image entry of the annotations is wrong",
        "Training stops, or --skip-bad-images leaves it out.",
    ),
    "leakage": Kind(
        "error",
        "same or almost the same image in training and evaluation",
        "Metrics would be better than the detector is. Take it out of one split.",
    ),
    "shared_by_evaluations": Kind(
        "warning",
        "same or almost the same image in val and test",
        "A choice made by val is then partly made by test.",
    ),
    "duplicate_image": Kind(
        "warning",
        "same or almost the same image more than once in a split",
        "It weighs more than others, and its labels may contradict each other.",
    ),
    "no_validation_split": Kind(
        "warning",
        "no validation images",
        "No epoch can be measured, and the last weights are taken for the best.",
    ),
    "bad_box": Kind("warning", "box is not four finite numbers", _DROPPED),
    "degenerate_box": Kind("warning", "box without width, height or area", _DROPPED),
    "outside_box": Kind("warning", "box outside its image", _DROPPED),
    "clipped_box": Kind(
        "warning",
        "box reaches outside its image",
        "It is cut at the border. Many of them: are the sizes those of these files?",
    ),
    "subpixel_box": Kind("warning", "box narrower than a pixel", _DROPPED),
    "unknown_category": Kind("warning", "box of a category not listed", _DROPPED),
    "unknown_image": Kind("warning", "box of an image not listed", _DROPPED),
    "repeated_annotation": Kind("warning", "annotation listed twice", _DROPPED),
    "dropped_box": Kind("warning", "box that cannot be used", _DROPPED),
    "duplicate_box": Kind(
        "warning",
        "two boxes of a class on one object",
        "One of them is always a miss, or teaches two detections for one object.",
    ),
    "conflicting_box": Kind(
        "warning",
        "boxes of two classes on one object",
        "Each teaches against the other, unless an object can be both.",
    ),
    "small_image": Kind(
        "warning",
        f"image with a side below {dataset.MIN_IMAGE_SIDE} pixels",
        "Training leaves it out.",
    ),
    "dim_image": Kind(
        "warning",
        "image is almost black",
        "Of 16 bits the high byte is used. Values of 10, 12 or 14 bits must be scaled to "
        "fill the 16, or saved as 8-bit images.",
    ),
    "many_objects": Kind(
        "warning",
        f"more than {MANY_OBJECTS} objects in an image",
        "A detector returns 100 by default (max_detections), and COCO metrics count "
        "100. Cut such images into tiles.",
    ),
    "class_without_boxes": Kind(
        "warning",
        "class without any box",
        "Without boxes in train it is never learned, without boxes in val never measured.",
    ),
    "similar_classes": Kind(
        "warning",
        "classes with names that look alike",
        "They differ only in blanks or case. Are they one class?",
    ),
    "class_not_in_train": Kind(
        "warning",
        "boxes of classes that the training annotations do not list",
        "They are left out of the evaluation.",
    ),
    "commonly_small_boxes": Kind(
        "warning",
        "many boxes are small at the training size",
        "Take a larger --image-size, or cut the images into tiles.",
    ),
    "unused_labels": Kind(
        "warning",
        "label file that is not read",
        "There is no image of its name, or no list names it.",
    ),
    "unread_image": Kind(
        "warning",
        "image file of an ending that folders are not searched for",
        f"Save it as JPEG or PNG; folders are searched for "
        f"{', '.join(sorted(IMAGE_SUFFIXES))}.",
    ),
    "small_box": Kind(
        "note",
        "box is small at the training size",
        "Such objects are hard to find; a larger --image-size makes them larger.",
    ),
    "elongated_box": Kind(
        "note",
        f"box is more than {ELONGATED} times as long as wide",
        "Few points of the detector lie in it. Is it really one object?",
    ),
    "class_imbalance": Kind(
        "note",
        "classes differ much in their number of boxes",
        "Look at the AP of each class, not at the mean alone.",
    ),
    "image_without_objects": Kind(
        "note",
        "image without objects",
        "Training leaves it out, evaluation counts what is found in it as wrong. Was it "
        "labelled?",
    ),
    "exif_orientation": Kind(
        "note",
        "image is stored turned (EXIF orientation)",
        "It is turned upright when read. See below whether the boxes fit.",
    ),
    "converted_format": Kind(
        "note",
        "image is neither JPEG nor PNG",
        "It is decoded in Python, which is slower; save it as JPEG or PNG.",
    ),
    "unlisted_file": Kind(
        "note",
        "image file that no annotations list",
        "It is not used. Was it forgotten?",
    ),
    "unused_split": Kind(
        "note",
        "list, file or folder of annotations that is not read",
        "Splits are called train, val (valid, validation) and test; of two names for "
        "one the first is read.",
    ),
    "passed_over": Kind(
        "note",
        "file or link that is passed over",
        "It is no data: hidden, of the system or an archive, a pipe or a dead link.",
    ),
}
PROBLEM_KINDS = {
    dataset.BAD_BOX: "bad_box",
    dataset.BAD_SIZE: "degenerate_box",
    dataset.BAD_AREA: "degenerate_box",
    dataset.OUTSIDE: "outside_box",
    dataset.CLIPPED: "clipped_box",
    dataset.TINY: "subpixel_box",
    dataset.UNKNOWN_CATEGORY: "unknown_category",
    dataset.UNKNOWN_IMAGE: "unknown_image",
    dataset.DUPLICATE: "repeated_annotation",
}
