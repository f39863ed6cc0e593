"""Label maps of the Object Detection API: `item { id: 1 name: 'cat' }` in a text file.

The file is a protocol buffer in text form. Fields of an item other than `id`, `name` and
`display_name` are read over.
"""

import dataclasses
import re
import unicodedata

from vfnet_tf.data.text import NOT_UTF8, is_valid
from vfnet_tf.data.values import read_integer

MAX_BYTES = 2**24

_TOKEN = re.compile(
    r"""(?:\s|\#[^\n]*)*(?:
    (?P<text>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
    |(?P<mark>[{}<>\[\]:;,])
    |(?P<word>[^\s\#"'{}<>\[\]:;,]+)
    |(?P<end>\Z))""",
    re.VERBOSE,
)
_ESCAPE = re.compile(
    rb"\\(?:([0-7]{1,3})|x([0-9a-fA-F]{1,2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))",
    re.DOTALL,
)
_LETTERS = dict(zip(b"abfnrtv", b"\a\b\f\n\r\t\v", strict=True))
_BACKGROUND = frozenset({"background", "__background__"})
_CLOSING = {"{": "}", "<": ">"}
_MAX_DEPTH = 20


@dataclasses.dataclass(frozen=True)
class LabelMap:
    """Classes by their ids.

    Attributes:
        names: tuple of str, index = label: the `display_name`s, else the `name`s.
        ids: tuple of int, index = label, ascending.
        labels_of: dict from a `name` or `display_name` to its label.
        has_background: bool, whether there is an item 0 with the name background, which is
            no class.
    """

    names: tuple
    ids: tuple
    labels_of: dict
    has_background: bool = False


def parse_label_map(text):
    """Reads the text of a label map.

    Args:
        text: str.

    Returns:
        `LabelMap`, in the order of the ids.

    Raises:
        ValueError: with the line, if it is no label map; the caller names the file.
    """
    items = {}
    for name, value, line in _Parser(text).message():
        if name != "item" or not isinstance(value, list):
            raise ValueError(f"line {line}: {name!r} must be item {{ ... }}")
        number, shown, called = _read_item(value, line)
        if number in items:
            raise ValueError(f"line {line}: a second item has the id {number}")
        items[number] = (shown, called, line)
    if not items:
        raise ValueError("it has no item { id: ... name: ... }")
    # The API keeps the id 0 for it.
    has_background = len(items) > 1 and items.get(0, ("",))[0].lower() in _BACKGROUND
    if has_background:
        del items[0]
    labels_of = {}
    for label, number in enumerate(sorted(items)):
        shown, called, line = items[number]
        for text in {shown, called}:
            if text in labels_of:
                raise ValueError(f"line {line}: a second item has the name {text!r}")
            labels_of[text] = label
    ids = tuple(sorted(items))
    names = tuple(items[number][0] for number in ids)
    return LabelMap(names, ids, labels_of, has_background)


def format_label_map(names, ids):
    """The text of a label map of these classes."""
    items = (
        f'item {{\n  id: {number}\n  name: "{_escape(name)}"\n}}\n'
        for name, number in zip(names, ids, strict=True)
    )
    return "".join(items)


def _read_item(fields, line):
    """(id, name to show, name) of an item."""
    found = {}
    for name, value, _ in fields:
        if name in ("id", "name", "display_name"):
            if name in found and found[name] != value:
                raise ValueError(f"line {line}: the item has two values of {name}")
            found[name] = value
    number = read_integer(found.get("id"))
    if number is None:
        raise ValueError(
            f"line {line}: the item must have an integer id, has {found.get('id')!r}"
        )
    shown = found.get("display_name") or found.get("name")
    called = found.get("name") or shown
    for text in (shown, called):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"line {line}: the item with the id {number} has no name")
        if not is_valid(text):
            raise ValueError(f"line {line}: the name of the id {number} {NOT_UTF8}")
    return number, *(unicodedata.normalize("NFC", text) for text in (shown, called))


class _Parser:
    """The fields of a protocol buffer in text form."""

    def __init__(self, text):
        self._text, self._position = text, 0
        self._counted, self._number = 0, 1

    def _next(self):
        """(kind, text) of the next token."""
        match = _TOKEN.match(self._text, self._position)
        if match is None:
            raise ValueError(f"line {self._line()}: a quote is not closed")
        self._position = match.end()
        return match.lastgroup, match.group(match.lastgroup)

    def _peek(self):
        position = self._position
        token = self._next()
        self._position = position
        return token

    def _line(self):
        self._number += self._text.count("\n", self._counted, self._position)
        self._counted = self._position
        return self._number

    def message(self, closing=None, depth=0):
        """List of (name, value, line) up to a closing mark, or to the end.

        A value is a str, or a list of fields.
        """
        if depth > _MAX_DEPTH:
            raise ValueError(f"line {self._line()}: messages are nested too deeply")
        fields = []
        while True:
            kind, name = self._next()
            line = self._line()
            if (kind, name) == ("end", "") and closing is None:
                return fields
            if kind == "mark" and name == closing:
                return fields
            if kind == "mark" and name in ";," and fields:
                continue
            if kind != "word":
                wanted = "the name of a field" + (f" or {closing}" if closing else "")
                raise ValueError(f"line {line}: {name!r} in place of {wanted}")
            fields.append((name, self._value(name, depth), line))

    def _value(self, name, depth):
        kind, text = self._next()
        has_colon = text == ":" and kind == "mark"
        if has_colon:
            kind, text = self._next()
        if kind == "mark" and text in _CLOSING:
            return self.message(_CLOSING[text], depth + 1)
        if has_colon and kind == "mark" and text == "[":
            return self._several(name, depth)
        if not has_colon or kind not in ("word", "text"):
            raise ValueError(f"line {self._line()}: {name} has no value")
        if kind == "word":
            return text
        parts = [_unescape(text[1:-1])]
        while self._peek()[0] == "text":  # texts side by side are one
            parts.append(_unescape(self._next()[1][1:-1]))
        return "".join(parts)

    def _several(self, name, depth):
        """The values in brackets, as fields of one name."""
        fields = []
        while True:
            kind, text = self._peek()
            if kind == "mark" and text in "],":
                self._next()
                if text == "]":
                    return fields
                continue
            if kind == "mark" and text in _CLOSING:
                self._next()
                value = self.message(_CLOSING[text], depth + 1)
            elif kind in ("word", "text"):
                value = self._next()[1]
            else:
                raise ValueError(f"line {self._line()}: {name} has no ]")
            fields.append((name, value, self._line()))


def _unescape(text):
    def character(match):
        octal, short, *code, other = match.groups()
        if octal or short:
            return bytes([int(octal, 8) & 255 if octal else int(short, 16)])
        code = next(filter(None, code), None)
        if code:
            number = int(code, 16)
            return chr(number).encode(errors="replace") if number < 0x110000 else b"?"
        return bytes([_LETTERS.get(other[0], other[0])])

    data = text.encode("utf-8", "surrogateescape")
    return _ESCAPE.sub(character, data).decode("utf-8", "surrogateescape")


def _escape(name):
    return "".join(
        f"\\{ord(c):03o}" if c in '\\"' or ord(c) < 32 or ord(c) == 127 else c
        for c in name
    )
