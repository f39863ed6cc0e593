"""Containers of images: formats of files, segments, chunks and EXIF.

No pixels are decoded here. `data` is the whole file, as bytes or as a `FileView`.
`images.decode` reads the orientation by the same rules in TensorFlow;
`tests/data/images/test_decode.py` compares the two.
"""

import os

JPEG, PNG, BMP, TIFF, WEBP = "JPEG", "PNG", "BMP", "TIFF", "WebP"

_JPEG_START = b"\xff\xd8\xff"
_PNG_START = b"\x89PNG\r\n\x1a\n"
_STARTS = (
    (_JPEG_START, JPEG),
    (_PNG_START, PNG),
    (b"BM", BMP),
    # Raw files of cameras are TIFF files, or nearly so, with a small preview in front.
    (b"II*\0\x10\0\0\0CR", "a camera's raw file (CR2)"),
    (b"IIRO", "a camera's raw file (ORF)"),
    (b"IIRS", "a camera's raw file (ORF)"),
    (b"IIU\0", "a camera's raw file (RW2)"),
    (b"FUJIFILMCCD-RAW", "a camera's raw file (RAF)"),
    (b"II\xbc", "JPEG XR"),
    *((start, TIFF) for start in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    (b"GIF8", "GIF"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\xff\xd8", "a JPEG without a head"),
    (b"\x8aMNG", "MNG"),
    (b"8BPS", "a Photoshop file (PSD)"),
    (b"%PDF", "PDF"),
    (b"%!PS", "PostScript"),
    (b"\0\0\1\0", "an icon (ICO)"),
    (b"v/1\1", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"SIMPLE  =", "FITS"),
    (b"\x93NUMPY", "a numpy array"),
    (b"PK\3\4", "a zip archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"version https://git-lfs", "a pointer of Git LFS"),
    *((b"P%d" % number, "PNM") for number in range(1, 7)),
    (b"Pf", "PFM"),
    (b"PF", "PFM"),
)
# ISO base media files: the brand is the format of the content.
_BRANDS = {
    b"avif": "AVIF",
    b"avis": "AVIF",
    b"crx ": "a camera's raw file (CR3)",
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"), "HEIC"),
}
_GENERAL_BRANDS = (b"mif1", b"msf1")
_TEXTS = ((b"<svg", "SVG"), (b"<!doctype html", "a web page"), (b"<html", "a web page"))

#: Segments of a JPEG and chunks of a PNG that are searched for EXIF. Each costs time in
#: the graph, and a sender writes twelve bytes for it.
MAX_SEGMENTS = 256
MAX_CHUNKS = 8192
#: Bytes of an EXIF block that are read: a segment of a JPEG holds no more.
MAX_EXIF = 65536

_ORIENTATION = 0x0112
# Bytes that a `FileView` reads at once: mostly all that stands before the pixels.
_HEAD = 8192
_EXIF_START = b"Exif\0"
_SOS, _EOI, _APP1 = 0xDA, 0xD9, 0xE1


class FileView:
    """A file as if it were bytes; slices are read on demand.

    A memory map would end the process when a disk fails or the file is cut.

    Args:
        file: open binary file, whose position is left as it is.
    """

    def __init__(self, file):
        self._file = file
        position = file.tell()
        self._size = file.seek(0, os.SEEK_END)
        file.seek(position)
        self._head = b""
        self._head = self[:_HEAD]

    def __len__(self):
        return self._size

    def __getitem__(self, key):
        if not isinstance(key, slice):
            return self[key : key + 1][0]
        start, stop, _ = key.indices(self._size)
        if stop <= len(self._head):
            return self._head[start:stop]
        position = self._file.tell()
        self._file.seek(start)
        part = self._file.read(max(stop - start, 0))
        self._file.seek(position)
        return part


def format_of(data):
    """The format of a file by its first bytes.

    Returns:
        str: `JPEG`, `PNG`, `BMP`, `TIFF`, `WEBP`, or the name of a format that is not
        read here; None if it is not known.
    """
    start = bytes(data[:1024])
    if start[:4] == b"RIFF":
        return {b"WEBP": WEBP, b"AVI ": "a video (AVI)"}.get(start[8:12])
    if start[4:8] == b"ftyp":
        brands = [start[8:12]]
        if brands[0] in _GENERAL_BRANDS:  # The brands it is compatible with tell more.
            size = int.from_bytes(start[:4], "big")
            brands += [start[i : i + 4] for i in range(16, min(size, 256), 4)]
        names = [_BRANDS[brand] for brand in brands if brand in _BRANDS]
        if not names:
            return "HEIF" if brands[0] in _GENERAL_BRANDS else "a video (MP4)"
        return names[0]
    if start[128:132] == b"DICM":
        return "DICOM"
    for text, name in _STARTS:
        if start.startswith(text):
            return name
    text = start.lower()
    return next((name for tag, name in _TEXTS if tag in text), None)


def jpeg_segments(data):
    """Yields `(marker, start, end)` of the contents of a JPEG's segments.

    It ends behind the first start of a scan, or where no segment follows.
    """
    position = 2
    while True:
        head = data[position : position + 4]
        if len(head) < 2 or head[0] != 0xFF or head[1] == _EOI:
            return
        if head[1] == 0xFF:  # a fill byte
            position += 1
            continue
        length = max(int.from_bytes(head[2:].ljust(2, b"\0"), "big"), 2)
        yield head[1], position + 4, position + 2 + length
        if head[1] == _SOS:
            return
        position += 2 + length


def png_chunks(data):
    """Yields `(name, start, end)` of the contents of a PNG's whole chunks up to IEND."""
    position = len(_PNG_START)
    while position + 12 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        name, start = data[position + 4 : position + 8], position + 8
        if start + length + 4 > len(data):
            return
        yield name, start, start + length
        if name == b"IEND":
            return
        position = start + length + 4


def exif_orientation(data):
    """The EXIF orientation of a JPEG, PNG or WebP file.

    Only EXIF counts, as in browsers: no XMP, and no EXIF in a text of a PNG. In a JPEG it
    stands in one of the first 256 segments, in a PNG in one of the first 8192 chunks,
    before or behind the pixels. A TIFF file has a tag for it, which PIL applies.

    Args:
        data: the file.

    Returns:
        int in 1..8; 1 (upright) for other formats and without good EXIF.
    """
    return block_orientation(_exif_block(data))


def _exif_block(data):
    if data[:3] == _JPEG_START:
        parts, limit, wanted = jpeg_segments(data), MAX_SEGMENTS, _APP1
    elif data[:8] == _PNG_START:
        parts, limit, wanted = png_chunks(data), MAX_CHUNKS, b"eXIf"
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        parts, limit, wanted = _webp_chunks(data), MAX_CHUNKS, b"EXIF"
    else:
        return b""
    for _, (name, start, end) in zip(range(limit), parts, strict=False):
        # An APP1 segment may also hold XMP.
        if name == wanted and (name != _APP1 or data[start : start + 5] == _EXIF_START):
            return data[start : min(end, start + MAX_EXIF)]
    return b""


def _webp_chunks(data):
    position = 12
    while position + 8 <= len(data):
        length = int.from_bytes(data[position + 4 : position + 8], "little")
        start = position + 8
        yield data[position : position + 4], start, start + length
        position = start + length + length % 2


def block_orientation(block):
    """The orientation in an EXIF block, with the name `Exif` before it or without.

    Args:
        block: bytes, a TIFF header and its first directory.

    Returns:
        int in 1..8; 1 for a block that is damaged or has none.
    """
    if block[:5] == _EXIF_START:
        block = block[6:]
    order = {b"II*\0": "little", b"MM\0*": "big"}.get(bytes(block[:4]))
    if order is None:
        return 1

    def number(position, size):
        part = block[position : position + size].ljust(size, b"\0")
        return int.from_bytes(part, order)

    directory = number(4, 4)
    for index in range(number(directory, 2)):
        entry = directory + 2 + 12 * index
        if entry + 12 > len(block):
            return 1
        if number(entry, 2) == _ORIENTATION:
            # The standard has a short number, some writers a long one.
            size = {3: 2, 4: 4}.get(number(entry + 2, 2))
            value = number(entry + 8, size) if size else 1
            return value if 1 <= value <= 8 else 1
    return 1
