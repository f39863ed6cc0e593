import math

import numpy as np
import pytest

from vfnet_tf.data.values import (
    CROWD_FLAGS,
    is_blank,
    read_crowd,
    read_flag,
    read_id,
    read_integer,
    read_number,
    read_size,
)

NAN = float("nan")
# value: number, integer, id of a json, flag; None for "it is none".
TABLE = [
    (0, 0.0, 0, 0, False),
    (1, 1.0, 1, 1, True),
    (1.0, 1.0, 1, 1, True),
    ("0", 0.0, 0, None, False),
    ("1", 1.0, 1, None, True),
    (" 1.0 ", 1.0, 1, None, True),
    ("1e3", 1000.0, 1000, None, None),
    (2, 2.0, 2, 2, None),
    (-1, -1.0, -1, -1, None),
    (0.5, 0.5, None, None, None),
    ("10.5", 10.5, None, None, None),
    # As numpy and pandas have them.
    (np.int64(3), 3.0, 3, 3, None),
    (np.float32(1), 1.0, 1, 1, True),
    (2**63, float(2**63), None, None, None),
    (2**63 - 1, float(2**63), 2**63 - 1, 2**63 - 1, None),
    (1e300, 1e300, None, None, None),
]
# No numbers, by the flag that they are: blanks are False, as a flag that is not set.
NO_NUMBERS = {
    False: ["", "  ", None, NAN, np.float64("nan"), "nan", "NULL", "<NA>"],
    True: [True, "True", "Y", np.bool_(True)],
    None: ["1_0", "\u0661", "10,5", "0x10", "10 px", "inf", float("inf"), "maybe"],
}
NO_NUMBERS[False] += [False, "false", "no"]
NO_NUMBERS[None] += [[1], {}, 1j, 10**400]
for flag, values in NO_NUMBERS.items():
    TABLE += [(value, None, None, None, flag) for value in values]


@pytest.mark.parametrize(
    ("value", "number", "integer", "json_id", "flag"), TABLE, ids=lambda v: repr(v)[:20]
)
def test_a_value_means_the_same_wherever_it_comes_from(
    value, number, integer, json_id, flag
):
    assert read_number(value) == number
    if number is not None:
        assert type(read_number(value)) is float
    # An int that a float cannot hold is no number, but may be asked for as one.
    assert read_integer(value) == integer
    assert read_id(value) == json_id
    found = read_flag(value)
    assert found is flag


def test_blank_is_what_says_nothing():
    assert all(map(is_blank, (None, "", " ", "NaN", "None", "n/a", NAN, math.nan)))
    assert not any(map(is_blank, (0, "0", False, "-", [], {}, "nano", math.inf)))


@pytest.mark.parametrize("name", CROWD_FLAGS)
def test_any_of_the_flags_sets_an_object_aside(name):
    assert read_crowd({}) == (False, "")
    assert read_crowd({name: "1.0"}) == (True, "")
    assert read_crowd({name: "false", "truncated": 1}) == (False, "")
    # One that is set is enough, and one that is odd spoils it.
    others = {other: 0 for other in CROWD_FLAGS if other != name}
    assert read_crowd({**others, name: True}) == (True, "")
    assert read_crowd({**others, name: "2"}) == (False, f"{name}='2'")


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        (480, 640, (480, 640)),
        ("480.0", 640.0, (480, 640)),
        (None, None, None),
        ("", "nan", None),
        (0, "0", None),
        (NAN, NAN, None),
        *((height, 640, ValueError) for height in (0, -480, 480.5, "x")),
        (480, None, ValueError),
        (True, True, ValueError),
    ],
)
def test_a_size_is_two_positive_integers_or_is_not_stated(height, width, size):
    if size is ValueError:
        with pytest.raises(ValueError, match="must have a size of positive integers"):
            read_size(height, width)
    else:
        assert read_size(height, width) == size
