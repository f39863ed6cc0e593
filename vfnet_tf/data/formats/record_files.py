"""Files of TFRecords: their names, shards and splits, and where their records begin.

The names are those of TensorFlow's tools: `train.tfrecord`, `train.record`, and shards as
`train-00000-of-00010`, `train.tfrecord-00000-of-00010` or `train-00000-of-00010.tfrecord`.
Folders are local, or remote as `places` says.
"""

import collections
import contextlib
import dataclasses
import os
import re

from vfnet_tf.data.folders import is_hidden
from vfnet_tf.data.images.places import (
    RECORD_HEAD,
    file_stamp,
    gfile,
    is_remote,
    open_file,
)
from vfnet_tf.data.splits import by_split, split_named

_SUFFIX = r"\.(?:tf[-_]?records?|tfrec|records?)"
_NAME = re.compile(
    rf"(?P<stem>.*?)(?P<suffix>{_SUFFIX})?(?:-(?P<index>\d+)-of-(?P<total>\d+))?"
    rf"(?P<ending>{_SUFFIX})?(?P<packed>\.(?:gz|gzip|zlib|zz|bz2|xz|zst))?",
    re.IGNORECASE | re.DOTALL,
)
# Quick to look for in the names of many images.
_HINT = re.compile("rec|-of-", re.IGNORECASE)
#: Bytes behind the data of a record: its checksum.
RECORD_END = 4
# Training and validation images in one, read for train.
_BOTH = "trainval"
_PACKED = ((b"\x1f\x8b", "GZIP"), (b"\x78\x01", "ZLIB"), (b"\x78\x9c", "ZLIB"))
_PACKED += ((b"\x78\xda", "ZLIB"),)


@dataclasses.dataclass(frozen=True)
class RecordSet:
    """One file, or the shards of one name.

    Attributes:
        folder: str.
        stem: str, the name without number and ending.
        word: str, the word of the name or else the folder that names a split, or
            `trainval`; empty without one.
        total: int, the number of shards; 0 for one file.
        names: tuple of str, the files that are there, in order.
        missing: tuple of str, shards that are not there, and files that are no shard of
            that number.
    """

    folder: str
    stem: str
    word: str
    total: int
    names: tuple
    missing: tuple

    @property
    def paths(self):
        """List of str, the files."""
        return [f"{self.folder}/{name}" for name in self.names]

    @property
    def shown(self):
        """str, the name with question marks for the number."""
        return re.sub(r"-\d+-of-", "-?-of-", self.names[0]) if self.total else self.stem


def list_names(folder):
    """Files and folders in a folder, without hidden ones.

    Returns:
        (list of names of files, list of names of folders), each sorted.
    """
    files, folders = [], []
    if is_remote(folder):
        with gfile() as remote:
            for name in {name.rstrip("/") for name in remote.listdir(folder)}:
                is_folder = remote.isdir(f"{folder}/{name}")
                (folders if is_folder else files).append(name)
    else:
        # A folder without permission has no entries.
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):  # a loop of links
                    if entry.is_dir():
                        folders.append(entry.name)
                    elif entry.is_file():
                        files.append(entry.name)
    return tuple(
        sorted(name for name in names if not is_hidden(name))
        for names in (files, folders)
    )


def is_record_file(name):
    """Whether a file has the name of TFRecords or of a shard."""
    if not _HINT.search(name):
        return False
    parts = _NAME.fullmatch(name)
    return any(parts[group] for group in ("suffix", "total", "ending"))


def pattern_hint(path):
    """Text on a path that is a pattern of shards; empty for another one."""
    if not re.search(r"[*?\[]|@(\d+|\*)", os.path.basename(path)):
        return ""
    return (
        "; in place of a pattern give the folder of the shards, or one of them for all"
    )


def find_sets(folder):
    """The `RecordSet`s in a folder, without the folders in it, sorted by name."""
    groups = collections.defaultdict(dict)
    for name in list_names(folder)[0]:
        if is_record_file(name):
            parts = _NAME.fullmatch(name).groupdict(default="")
            index, total = parts.pop("index"), parts["total"]
            groups[tuple(parts.values())][int(index) if index else 0] = name
    sets = []
    for (stem, suffix, total, ending, packed), files in sorted(groups.items()):
        names = [files[index] for index in sorted(files)]
        # TensorFlow's checkpoints have such names too.
        if not (suffix or ending) and not _begins_like_records(folder, names):
            continue
        missing = []
        if total:
            digits = len(re.search(r"-(\d+)-of-", names[0]).group(1))
            wanted = range(int(total)) if int(total) <= 10**6 else ()
            missing = [
                f"{stem}{suffix}-{index:0{digits}d}-of-{total}{ending}{packed}"
                for index in wanted
                if index not in files
            ] + [files[index] for index in sorted(files) if index not in wanted]
        words = re.split(r"[-_.\s]+", stem)
        places = [*words, os.path.basename(folder)]
        word = next((w for w in places if split_named(w) or w.lower() == _BOTH), "")
        sets.append(
            RecordSet(folder, stem, word, int(total or 0), tuple(names), tuple(missing))
        )
    return sets


def _begins_like_records(folder, names):
    for name in names:
        with contextlib.suppress(OSError):
            with open_file(f"{folder}/{name}") as file:
                head = file.read(RECORD_HEAD)
            if head:
                return _length(head) is not None
    return False


def sets_by_split(root, sets):
    """Chooses the sets of each split.

    Args:
        root: str, the folder of the data; its own sets come before those of folders.
        sets: list of `RecordSet`.

    Returns:
        (dict split -> list of `RecordSet`, list of those that are not used). A single
        set without the name of a split is `train`, and so is `trainval` where there is
        neither train nor val.
    """
    used = {}
    found = by_split(sets, lambda one: one.word)
    if not found.keys() & {"train", "val"}:
        both = [one for one in sets if one.word.lower() == _BOTH]
        found.update({"train": both} if both else {})
    for split, named in found.items():
        first = min(named, key=lambda one: one.folder != root)
        place = (first.folder, first.word)
        used[split] = [one for one in named if (one.folder, one.word) == place]
    if not used and len(sets) == 1:
        used["train"] = list(sets)
    chosen = [one for ones in used.values() for one in ones]
    return used, [one for one in sets if one not in chosen]


def find_records(path):
    """Where the records of a file are, by their lengths alone.

    Args:
        path: str.

    Returns:
        (list of (first byte, bytes of data), str: why the file cannot be read behind
        these records; empty for a whole file).

    Raises:
        ValueError: if it is compressed or no file of records.
        OSError: if it cannot be read.
    """
    size, _ = file_stamp(path)
    found, start = [], 0
    with open_file(path) as file:
        while start < size:
            file.seek(start)
            head = file.read(RECORD_HEAD)
            length = _length(head)
            if length is None and not found:
                _refuse(path, head)
            rest = size - start - RECORD_HEAD - RECORD_END
            if len(head) < RECORD_HEAD or (length is not None and length > rest):
                return found, f"the file ends within it, at byte {size}"
            if length is None:
                return found, "its length has a wrong checksum"
            found.append((start, length))
            start += RECORD_HEAD + length + RECORD_END
    return found, ""


def _refuse(path, head):
    """Says what a file is that does not begin with a record."""
    for start, kind in _PACKED:
        if head.startswith(start):
            raise ValueError(
                "A TFRecord must not be compressed, so that its records can be read in "
                "any order: unpack it (gzip -d), or write it anew without "
                f"`compression_type`. Received: {path}, which is {kind}"
            )
    if len(head) == RECORD_HEAD:
        raise ValueError(
            "A TFRecord must begin with the length of its first record and the right "
            "checksum of that: write or copy the file anew. "
            f"Received: {path}, record 1 of which begins with {head!r}"
        )


def _length(head):
    """The length of the data behind the head of a record, None for a wrong checksum."""
    if len(head) < RECORD_HEAD or _masked_crc(head[:8]) != head[8:]:
        return None
    return int.from_bytes(head[:8], "little")


def _crc_table():
    # CRC-32C (Castagnoli), bits reversed.
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _crc_table()


def _masked_crc(data):
    """The checksum of bytes as TFRecords have it, four bytes."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[crc & 255 ^ byte] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    masked = (crc >> 15 | crc << 17) + 0xA282EAD8
    return (masked & 0xFFFFFFFF).to_bytes(4, "little")
