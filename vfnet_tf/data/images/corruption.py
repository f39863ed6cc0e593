"""Finds damage inside image files that decoders accept, with or without a warning.

Where coded data of a JPEG are missing a decoder fills in grey; where there are too many it
skips some. Decoding the file again with other bytes shows both: in a good file, other
bytes behind the coded data change no pixel, and other last bytes of the data change some.

Functions take `data`, the whole file as bytes or as a `containers.FileView`. They return a
text that stands behind the name of the file in messages, or None if they find nothing.
"""

import dataclasses
import io
import re
import zlib

import numpy as np
from PIL import Image, ImageChops

# Bytes exchanged at the end of the coded data. Fewer bytes too many do no harm, and their
# change might not show.
_TAIL = 16
# The table of codes for so few bytes may have no other codes.
_SHORT = 4 * _TAIL
# A white border hides changes that make it brighter: each try has other bytes.
_TRIES = 8
_FILLER = 64
# So many zeros are no picture: a block has 63 coefficients of 3 bits.
_HOLE = bytes(48)
# Steps of a coefficient that rounding does not hide and that keep some contrast.
_COARSE_STEPS = (8, 64)

_MARKER = re.compile(rb"\xff+([^\x00\xff])")
_END_OF_SCAN = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]")
_RESTART = re.compile(rb"\xff+[\xd0-\xd7]")
_DHT, _EOI, _SOS, _DQT, _DRI = 0xC4, 0xD9, 0xDA, 0xDB, 0xDD
_SEQUENTIAL, _PROGRESSIVE, _ARITHMETIC = {0xC0, 0xC1}, {0xC2}, {0xC9, 0xCA}
# Tables, comments and applications' segments may stand between scans.
_BETWEEN = {_DHT, 0xCC, _DQT, 0xDC, _DRI, 0xFE, *range(0xE0, 0xF0), _SOS, _EOI}

# Chunks whose content changes the picture.
_CRITICAL = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS"})
# Passes of an interlaced PNG: first column, step, first row, step.
_INTERLACED = ((0, 8, 0, 8), (4, 8, 0, 8), (0, 4, 4, 8), (2, 4, 0, 4), (0, 2, 2, 4))
_INTERLACED += ((1, 2, 0, 2), (0, 1, 1, 2))
_INFLATED_BYTES = 1 << 20

# Tags of TIFF, and the values of the first that mean "deflated".
_COMPRESSION, _STRIPS, _STRIP_BYTES, _TILES, _TILE_BYTES = 259, 273, 279, 324, 325
_DEFLATED = (8, 32946)


def png_damage(data, chunks):
    """Finds a wrong checksum in a PNG; `chunks` are those of `containers.png_chunks`."""
    for name, start, end in chunks:
        if name in _CRITICAL:
            stated = int.from_bytes(data[end : end + 4], "big")
            if zlib.crc32(data[start - 4 : end]) != stated:
                name = name.decode("ascii")
                return f"is corrupt: the checksum of {name} at byte {start} is wrong"
    return None


def png_pixel_damage(data, chunks):
    """Finds missing pixels in a PNG with good checksums; see `png_damage`."""
    chunks = list(chunks)
    start = chunks[0][1]
    width = int.from_bytes(data[start : start + 4], "big")
    height = int.from_bytes(data[start + 4 : start + 8], "big")
    depth, kind, *_, is_interlaced = data[start + 8 : start + 13]
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind]
    passes = _INTERLACED if is_interlaced else ((0, 1, 0, 1),)
    wanted = 0
    for x, x_step, y, y_step in passes:
        columns, rows = -(-(width - x) // x_step), -(-(height - y) // y_step)
        if columns > 0 and rows > 0:  # Each row has a byte for its filter.
            wanted += rows * (1 + -(-columns * bits // 8))
    pixels = b"".join(data[start:end] for name, start, end in chunks if name == b"IDAT")
    inflated = 0
    for part in _inflate(pixels):
        inflated += len(part)
        if inflated >= wanted:
            break
    else:
        return f"is corrupt: its pixels end at byte {inflated} of {wanted}"
    return None


def _inflate(rest):
    """Yields the content of a zlib stream in parts: a few bytes may hold gigabytes."""
    stream = zlib.decompressobj()
    while True:
        part = stream.decompress(rest, _INFLATED_BYTES)
        rest = stream.unconsumed_tail
        if not part and not rest:
            return
        yield part


def tiff_damage(data, tags):
    """Finds damage in deflated pixels of a TIFF, which PIL's decoder may not notice.

    `tags` is the dict of its tags. Other compressions are not checked.
    """
    if tags.get(_COMPRESSION) not in _DEFLATED:
        return None
    for offsets, counts in ((_STRIPS, _STRIP_BYTES), (_TILES, _TILE_BYTES)):
        places = zip(tags.get(offsets, ()), tags.get(counts, ()), strict=False)
        for start, count in places:
            try:
                for _ in _inflate(data[start : start + count]):
                    pass
            except zlib.error as error:
                return f"is corrupt: the pixels at byte {start} do not inflate: {error}"
    return None


def jpeg_damage(data, image):
    """Finds damage inside a JPEG that decodes, in twice the time of the decoding.

    Damage after which the coded data go on in the right place is not found.

    Args:
        data: bytes.
        image: `PIL.Image.Image`, decoded from them.
    """
    parts = _Parts()
    problem = parts.read(data) or _damage_of_scans(data, parts, image)
    return f"is corrupt: {problem}" if problem else None


@dataclasses.dataclass
class _Scan:
    """Places of coded data in a JPEG, and of the intervals between restart markers."""

    start: int
    end: int
    intervals: list
    restarts: int  # MCUs, the smallest coded units, in each but the last; 0: all
    is_dc_refinement: bool

    def is_short(self):
        return self.end - self.start < _SHORT


class _Parts:
    """Places of the parts of a JPEG's first image."""

    def __init__(self):
        self.scans = []
        self.frame = None
        self.sampling = b""  # factors of each colour, horizontal * 16 + vertical
        self.steps = []  # places of the quantisation steps but the first of each table
        self.has_zero_code = False

    def read(self, data):
        """Reads the markers; returns what is wrong with them, or None."""
        position, restarts = 2, 0
        while True:
            match = _MARKER.match(data, position)
            if match is None:
                is_end = self.scans and not data[position:].strip(b"\0\r\n")
                return None if is_end else f"no marker at byte {position}"
            marker, position = match.group(1)[0], match.end()
            if self.scans and marker not in _BETWEEN:
                return f"marker {marker:02X} inside the coded data"
            if marker == _EOI:
                return None
            start = position + 2
            length = int.from_bytes(data[position:start], "big")
            position += max(length, 2)
            if marker in _SEQUENTIAL | _PROGRESSIVE | _ARITHMETIC:
                self.frame = marker
                self.sampling = data[start + 7 : position : 3]
            elif marker == _DRI:
                restarts = int.from_bytes(data[start : start + 2], "big")
            elif marker == _DQT:
                self._read_steps(data, start, position)
            elif marker == _DHT:
                self._read_codes(data, start, position)
            elif marker == _SOS:
                match = _END_OF_SCAN.search(data, position)
                end = len(data) if match is None else match.start()
                first, _, approximation = data[position - 3 : position]
                refinement = first == 0 and approximation >= 16
                scan = _Scan(position, end, [], restarts, refinement)
                self.scans.append(scan)
                problem = _split_at_restarts(data, scan)
                if problem:
                    return problem
                position = end

    def _read_steps(self, data, position, end):
        while position < end:
            size = 2 if data[position] >= 16 else 1
            self.steps += range(position + 2 * size, position + 1 + 64 * size, size)
            position += 1 + 64 * size

    def _read_codes(self, data, position, end):
        """Notes whether a code of zeros is a coefficient, and not the end of a block."""
        while position < end:
            kind, counts = data[position], data[position + 1 : position + 17]
            first_symbol = data[position + 17 : position + 18]
            if kind == 0x10:  # the first table of those for all but the mean
                self.has_zero_code = first_symbol not in (b"", b"\0", b"\xf0")
            position += 17 + sum(counts)


def _split_at_restarts(data, scan):
    first = scan.start
    for number, match in enumerate(_RESTART.finditer(data, scan.start, scan.end)):
        if not scan.restarts or data[match.end() - 1] != 0xD0 + number % 8:
            return f"a restart marker out of order at byte {match.start()}"
        scan.intervals.append((first, match.start()))
        first = match.end()
    scan.intervals.append((first, scan.end))
    return None


def _damage_of_scans(data, parts, image):
    # The end of arithmetic coding is not fixed, and few decoders read it.
    if parts.frame in _ARITHMETIC:
        return None
    if parts.frame in _SEQUENTIAL and parts.has_zero_code:
        for scan in parts.scans:
            hole = data.find(_HOLE, scan.start, scan.end)
            if hole >= 0:
                return f"zeros inside the coded data at byte {hole}"
    random = np.random.default_rng(0)

    def noise(count):
        return random.integers(0, 255, count, dtype="uint8").tobytes()

    filled, position = [], 0
    for scan in parts.scans:
        for _, stop in scan.intervals:
            filled += [data[position:stop], noise(_FILLER)]
            position = stop
    filled.append(data[position:])
    if not _is_same(_decoded(b"".join(filled)), image):
        return "its coded data end before the picture does"
    for scan in parts.scans:
        # With restart markers each interval has its end, see below. A refined mean of a
        # white block hides a change.
        if len(scan.intervals) > 1 or scan.is_dc_refinement or scan.is_short():
            continue
        tail = _tail_of(data, scan.end)

        def is_unseen(version, scan=scan, tail=tail):
            source, decode, expected = version
            head, rest = source[:tail], source[scan.end :]
            return all(
                _is_same(decode(head + noise(scan.end - tail) + rest), expected)
                for _ in range(_TRIES)
            )

        if all(map(is_unseen, _versions(data, parts, image))):
            return "its coded data go on behind the picture"
    if parts.frame in _SEQUENTIAL and len(parts.scans) == 1:
        return _damage_of_intervals(data, parts, image, noise)
    return None


def _tail_of(data, end):
    """Place of the last bytes of coded data."""
    tail = end - _TAIL
    # A stuffed zero belongs to the byte before it.
    return tail - (data[tail - 1 : tail + 1] == b"\xff\0")


def _damage_of_intervals(data, parts, image, noise):
    """Finds intervals between restart markers with too much data, by their pixels."""
    (scan,) = parts.scans
    intervals = scan.intervals
    if len(intervals) == 1:
        return None
    # The units of a picture of one colour are single blocks.
    factors = parts.sampling if len(parts.sampling) > 1 else b"\x11"
    side_x = 8 * max(factor >> 4 for factor in factors)
    side_y = 8 * max(factor & 15 for factor in factors)
    columns, rows = -(-image.width // side_x), -(-image.height // side_y)
    firsts = np.arange(0, columns * rows, scan.restarts)
    if intervals[-1][0] == intervals[-1][1]:  # a marker behind all
        intervals = intervals[:-1]
    if len(firsts) != len(intervals):
        return f"{len(intervals)} parts between restart markers, not {len(firsts)}"
    # A row of units may change colours at the border of the next one.
    for parity in (0, 1):
        unseen = {
            number
            for number, (start, end) in enumerate(intervals)
            if number % 2 == parity and end - start >= _SHORT
        }
        for _ in range(_TRIES):
            if not unseen:
                break
            pieces, position = [], 0
            for number in sorted(unseen):
                end = intervals[number][1]
                tail = _tail_of(data, end)
                pieces += [data[position:tail], noise(end - tail)]
                position = end
            other = _decoded(b"".join([*pieces, data[position:]]))
            if other is None or other.size != image.size:
                break
            change = np.asarray(ImageChops.difference(image, other)) > 0
            change = change.reshape(*change.shape[:2], -1).any(axis=-1)
            padding = rows * side_y - image.height, columns * side_x - image.width
            change = np.pad(change, [(0, count) for count in padding])
            units = change.reshape(rows, side_y, columns, side_x).any(axis=(1, 3))
            is_seen = np.logical_or.reduceat(units.ravel(), firsts)
            unseen = {number for number in unseen if not is_seen[number]}
        else:
            if unseen:
                start = intervals[min(unseen)][0]
                return f"its coded data at byte {start} go on behind their part"
    return None


def _versions(data, parts, image):
    """Yields `(data, function that decodes it, its image)`: the file, and made from it.

    The last bits of a progressive scan may change a coefficient by a step that rounding
    hides, or a colour on black or white. Coarser steps, and YCbCr planes, show it.
    """
    yield data, _decoded, image
    if parts.frame in _PROGRESSIVE:
        for step in _COARSE_STEPS:
            coarse = np.frombuffer(data, "uint8").copy()
            coarse[parts.steps] = np.maximum(coarse[parts.steps], step)
            coarse = coarse.tobytes()
            yield coarse, _decoded_planes, _decoded_planes(coarse)


def _decoded(data, mode=None):
    """The PIL image of a JPEG, None if it cannot be decoded."""
    try:
        image = Image.open(io.BytesIO(data), formats=("JPEG",))
        if mode is not None:
            image.draft(mode, image.size)
        image.load()
        return image
    except Exception:  # PIL's decoders raise whatever they meet.
        return None


def _is_same(image, other):
    """Whether two images have the same pixels; None has none."""
    if image is None or other is None or image.size != other.size:
        return False
    return ImageChops.difference(image, other).getbbox() is None


def _decoded_planes(data):
    return _decoded(data, "YCbCr")
