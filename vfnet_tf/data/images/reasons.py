"""Reasons why an image cannot be used, as codes beside the messages."""

import enum


class Reason(enum.StrEnum):
    """What is wrong with an image; the kinds of finding of `vfnet scan`."""

    MISSING = "missing_image"
    TRUNCATED = "truncated_image"
    CORRUPT = "corrupt_image"
    UNDECODABLE = "undecodable_image"
    TENSORFLOW = "tensorflow_cannot_decode"
    UNSUPPORTED = "unsupported_format"
    SIZE_CONFLICT = "size_conflict"
    BAD_ENTRY = "bad_image_entry"


class ImageError(ValueError):
    """An image that cannot be used.

    Args:
        code: `Reason`.
        text: str, what is wrong, to stand behind the name of the file.
    """

    def __init__(self, code, text):
        super().__init__(text)
        self.code = code
