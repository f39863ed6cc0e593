"""Names of splits, the same rule for folders, lists, json files, columns and keys."""

import collections
import functools
import re

#: in the order in which they are read
SPLITS = ("train", "val", "test")

_CALLED = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("eval", "evaluation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_PLAINNESS = {name: place for place, name in enumerate(_CALLED)}
# COCO's files and folders have a year.
_NAME = re.compile(rf"({'|'.join(_CALLED)})(?:[-_]?\d{{4}})?", re.IGNORECASE)


def split_named(name):
    """The split that a name stands for, in any case and with a year or without.

    Args:
        name: str such as `"valid"`, `"Train"` or `"val2017"`, without a suffix.

    Returns:
        One of `SPLITS`; None for another name.
    """
    match = _NAME.fullmatch(name.strip())
    return match and _CALLED[match.group(1).lower()]


def by_split(items, name=str):
    """Groups things by the split that their names stand for.

    Args:
        items: iterable.
        name: function of an item that returns its name.

    Returns:
        dict split -> list of its items, those with the plainest name first: `val`
        before `valid` before `Validation2017`. In the order of `SPLITS`; items of
        other names are left out.
    """

    def plainness(item):
        place = _PLAINNESS.get(name(item), len(_PLAINNESS))
        return place, len(name(item)), name(item), str(item)

    found = collections.defaultdict(list)
    for item in sorted(items, key=plainness):
        found[split_named(name(item))].append(item)
    return {split: found[split] for split in SPLITS if split in found}


def _raise(error):
    raise error


class FoundSplits(dict):
    """The splits that were found in a dataset.

    A value is `(annotation file, image folder)`, both str, or a function that returns it.
    In other formats than COCO's that function writes the file, a COCO json, into the
    cache.

    Args:
        parts: dict; the splits come in the order of `SPLITS`.
        faults: dict split -> error that a look-up of the split raises.
        unused: list of str: files, folders and keys that look like splits or like
            annotations, and are not read.
        label_suffix: str, such as `".txt"`; empty where labels are no files beside the
            images.
        label_files: function of a list of image paths that returns the set of the
            label files that belong to them, there or not.
    """

    def __init__(
        self, parts, unused=(), label_suffix="", label_files=None, faults=None
    ):
        for split, error in (faults or {}).items():
            parts = {**parts, split: functools.partial(_raise, error)}
        super().__init__({split: parts[split] for split in SPLITS if split in parts})
        self.unused = list(unused)
        self.label_suffix = label_suffix
        self.label_files = label_files
