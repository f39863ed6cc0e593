"""Reads numbers, flags, ids and sizes of annotations, with one rule for all formats.

A value may come from json, yaml, XML, a CSV cell or numpy: `1`, `1.0`, `"1.0"` and `" 1 "`
are one number. The caller reports wrong values, with file and place.
"""

import numbers
from math import isfinite

import numpy as np

from vfnet_tf.foreign_text import clipped

#: Texts for a missing value; pandas and spreadsheets write them.
_BLANK_TEXTS = frozenset({"", "nan", "none", "null", "na", "n/a", "<na>"})
_FLAG_TEXTS = {
    **dict.fromkeys(("true", "yes", "t", "y"), True),
    **dict.fromkeys(("false", "no", "f", "n"), False),
}
_PLAIN = (float, int)  # quicker to tell than `numbers.Real`
#: Names of the flags that keep an object out of training and make evaluation ignore it.
#: `truncated` and `occluded` objects are objects.
CROWD_FLAGS = ("iscrowd", "is_crowd", "crowd", "difficult", "is_difficult", "ignore")
_CROWD_FLAGS = frozenset(CROWD_FLAGS)  # quick to look up


def is_blank(value):
    """Whether a value is missing: None, NaN, or a text such as `""` and `"nan"`."""
    if isinstance(value, str):
        return value.strip().lower() in _BLANK_TEXTS
    if value is None or type(value) in _PLAIN:
        return value is None or value != value
    return isinstance(value, numbers.Real) and value != value


def read_number(value):
    """A value as a float, None if it is no finite number.

    A text must be a number in Python's notation, in ASCII and without underscores. True
    and False are no numbers.
    """
    kind = type(value)
    if kind is str:
        # float() would accept 1_000 and the digits of other scripts.
        if "_" in value or not value.isascii():
            return None
    elif kind not in _PLAIN and (kind is bool or not isinstance(value, numbers.Real)):
        return None
    try:
        value = float(value)
    except (ValueError, OverflowError):
        return None
    return value if isfinite(value) else None


def read_integer(value):
    """A value as an int of 64 bits, None if it is none: `3`, `3.0` and `"3"` are 3."""
    if type(value) is not int:
        value = read_number(value)
        if value is None or value % 1:
            return None
        value = int(value)
    return value if -(2**63) <= value < 2**63 else None


def read_id(value):
    """`read_integer` of an id in a json, where a text is no id: `"3"` is not 3."""
    return None if isinstance(value, str) else read_integer(value)


def read_flag(value):
    """A value as a bool, None if it is neither: 0, 1, true, false, yes, no.

    A blank value is False: the flag is not set.
    """
    if type(value) is int:  # most of a large file
        return bool(value) if value in (0, 1) else None
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if is_blank(value):
        return False
    number = read_number(value)
    if number is not None:
        return bool(number) if number in (0, 1) else None
    return _FLAG_TEXTS.get(value.strip().lower()) if isinstance(value, str) else None


def read_crowd(entry):
    """Whether an object is kept out of training and ignored in evaluation.

    Args:
        entry: dict of an annotation; any of `CROWD_FLAGS` may be among its keys.

    Returns:
        (bool, str): the str names the flag that is neither true nor false, such as
        `iscrowd='maybe'`; it is empty where all is right.
    """
    is_crowd = False
    for name in _CROWD_FLAGS & entry.keys():
        flag = read_flag(entry[name])
        if flag is None:
            return False, f"{name}={clipped(entry[name])}"
        is_crowd |= flag
    return is_crowd, ""


def read_size(height, width):
    """The size that an annotation states for its image.

    Args:
        height, width: values in pixels. If both are blank or zero, no size is stated:
            many converters write zeros.

    Returns:
        (height, width), ints >= 1; None where none is stated.

    Raises:
        ValueError: for sides that are no positive integers.
    """
    sides = [0 if is_blank(v) else read_integer(v) for v in (height, width)]
    if sides == [0, 0]:
        return None
    if any(side is None or side < 1 for side in sides):
        raise ValueError(
            "must have a size of positive integers: "
            f"height {clipped(height)}, width {clipped(width)}"
        )
    return tuple(sides)
