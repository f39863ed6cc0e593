"""Finds files that look like data of a dataset and are not read."""

import collections
import functools
import os

from vfnet_tf.data.folders import list_tree
from vfnet_tf.data.images.inspect import IMAGE_SUFFIXES
from vfnet_tf.data.splits import split_named

# Endings of image files that are never searched for.
_OTHER_IMAGES = """
    .jpe .jfif .jif .jfi .mpo .pjpeg .pjp .jp2 .j2k .jpf .jpx .jxl .jxr .dib .gif .apng
    .heic .heif .hif .avif .ppm .pgm .pbm .pnm .tga .psd .svg .exr .hdr .raw .dng .cr2
    .cr3 .nef .arw .orf .rw2 .dcm .nii .npy
"""
OTHER_IMAGE_SUFFIXES = frozenset(_OTHER_IMAGES.split())
# Beginnings of names of text files that lie among labels and are no labels.
_NO_LABELS = ("classes", "labels", "names", "readme", "license", "notes", "predefined")


def find_unread_files(images, *, folder=None, label_suffix="", labels=()):
    """Finds files that may have been forgotten or misnamed, or that are no data.

    Args:
        images: list of str, all images that the annotations list, existing or not.
        folder: str, the folder of the dataset, searched with all folders in it; None
            searches the folders of images and labels only, without folders in them.
        label_suffix: str, such as `".txt"`; empty to look for no labels.
        labels: set of str, the label files of the images, existing or not.

    Returns:
        dict from a key of `scan.kinds.KINDS` to a list of (path, reason), sorted by path;
        the reason is empty where the kind is reason enough.
    """
    real_folder = functools.cache(os.path.realpath)

    def identity(path):
        head, name = os.path.split(os.path.abspath(path))
        return os.path.join(real_folder(head), name)

    known = {identity(path) for path in [*images, *labels]}
    label_folders = {os.path.dirname(identity(path)) for path in labels}

    def is_label(path):
        stem, suffix = os.path.splitext(os.path.basename(path).lower())
        if not label_suffix or suffix != label_suffix:
            return False
        if suffix == ".xml":
            return True
        # Not every text file is a label file.
        parts = os.path.dirname(path).lower().split(os.sep)
        return (
            ("labels" in parts or os.path.dirname(identity(path)) in label_folders)
            and not stem.startswith(_NO_LABELS)
            and not split_named(stem)
        )

    left_out, paths = [], []
    if folder is not None:
        paths += list_tree(folder, left_out)
    places = {os.path.dirname(os.path.abspath(path)) for path in [*images, *labels]}
    for place in sorted(places):
        if os.path.isdir(place):
            paths += list_tree(place, left_out, is_deep=False)
    found, seen = collections.defaultdict(dict), set(known)
    for path, reason in left_out:
        if identity(path) not in known and os.path.abspath(path) not in places:
            found["passed_over"].setdefault(identity(path), (path, reason))
    irregular = found["passed_over"].keys()
    for path in paths:
        key = identity(path)
        if key in seen or key in irregular:
            continue
        seen.add(key)
        suffix = os.path.splitext(path)[1].lower()
        if suffix in IMAGE_SUFFIXES:
            found["unlisted_file"][key] = (path, "")
        elif suffix in OTHER_IMAGE_SUFFIXES:
            found["unread_image"][key] = (path, "")
        elif is_label(path):
            found["unused_labels"][key] = (path, "")
    return {
        kind: sorted(entries.values()) for kind, entries in found.items() if entries
    }
