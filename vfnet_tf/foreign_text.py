"""Text and values of others in messages: on one line, cut, without control characters."""

import difflib
import reprlib
import unicodedata

# Marks that turn the direction of the text behind them (Unicode TR9), and line ends that
# are no control characters.
_TURNING = frozenset("\u061c\u200e\u200f\u2028\u2029")
_TURNING |= {chr(code) for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}


def one_line(text, max_length=400):
    """A text of others as one line that a terminal, a page or a figure can show.

    Control characters (also escape codes and line breaks), marks that turn the direction
    and lone surrogates are written out as in Python.

    Args:
        text: anything with a `str`.
        max_length: int, characters; the middle of a longer text is left out.
    """
    text = str(text)
    if len(text) > max_length:
        half = (max_length - 1) // 2
        text = f"{text[: max_length - 1 - half]}…{text[len(text) - half :]}"
    return _written_out(text, "")


def figure_text(text, max_length=60):
    """A text of others for a figure, which takes `$` for mathematics."""
    text = one_line(text, max_length).replace("$", r"\$")
    # A legend leaves out what begins with `_`.
    return f" {text}" if text.startswith("_") else text


def terminal_text(text):
    """The text without what steers a terminal; line breaks and tabs stay."""
    return _written_out(str(text), "\n\t")


def clipped(value, max_length=200, max_items=8):
    """The `repr` of a value from a file, at most so long, of at most so many items.

    The work is bounded too: what is deep or wide is left out before it is written.
    """
    short = reprlib.Repr()
    short.maxlevel = 3
    short.maxdict = short.maxlist = short.maxtuple = short.maxset = max_items
    short.maxstring = short.maxother = max_length
    try:
        return one_line(short.repr(value), max_length)
    except ValueError:  # Python writes out no integer of more than 4300 digits.
        return f"a {type(value).__name__} of too many digits"


def did_you_mean(name, known):
    """A sentence with the names that resemble a misspelt one or contain it, or `""`."""
    folded = {each.casefold(): each for each in known}
    name = str(name).casefold()
    close = difflib.get_close_matches(name, folded, n=3)
    close = close or [each for each in folded if len(name) > 2 and name in each][:3]
    return (
        f" Did you mean {' or '.join(folded[one] for one in close)}?" if close else ""
    )


def _written_out(text, kept):
    if text.isascii() and text.isprintable():  # nearly all
        return text
    return "".join(
        c if c in kept or not _steers(c) else c.encode("unicode_escape").decode("ascii")
        for c in text
    )


def _steers(character):
    return character in _TURNING or unicodedata.category(character) in ("Cc", "Cs")
