"""Finds images that are the same, or almost the same, in one split or in several."""

import collections
import os

import numpy as np

from vfnet_tf.data.scan.findings import Finding, Picture

THUMB_SIDE = 16
# Grey levels of 255 by which almost equal pictures differ: root mean square, and at most
# in any of the 16x16 cells. JPEG quality 30 or another size made up to 3.1 and 14 on
# coco_mini; its closest different photographs differ by 28 and 60, those of bccd by 10
# and 43, but for one slide shot twice (2.9 and 9), in train and in val.
_SAME_RMS = 4.0
_SAME_CELL = 16
_SAME_RATIO = 0.02
# Pictures with little contrast, such as dark ones, all differ by little. So the root mean
# square must also stay below this part of the standard deviation of the cells. Copies as
# above reach 0.06, the slide 0.16, different photographs 0.7.
_SAME_CONTRAST = 0.3


def find_lookalikes(usable, checked):
    """Findings on images that occur more than once.

    Args:
        usable: list of (split, path).
        checked: dict path -> object with `digest`, `thumb` and `header`.
    """
    by_digest = collections.defaultdict(list)
    for split, path in usable:
        by_digest[checked[path].digest].append((split, path))
    contents = list(by_digest.values())
    files = [checked[places[0][1]] for places in contents]
    thumbs = np.frombuffer(b"".join(file.thumb for file in files), "uint8")
    ratios = np.array([file.header.width / file.header.height for file in files])
    findings = []
    for group in group_lookalikes(thumbs.reshape(len(files), -1), ratios):
        places = [place for row in group for place in contents[row]]
        if len(places) < 2:
            continue
        splits = list(dict.fromkeys(split for split, _ in places))
        if len(splits) == 1:
            kind = "duplicate_image"
        else:
            kind = "leakage" if "train" in splits else "shared_by_evaluations"
        how = "the same file" if len(group) == 1 else "almost the same pixels"
        # One of each split first, so that a long list shows what leaks.
        firsts = {split: (split, path) for split, path in reversed(places)}
        shown = [firsts[split] for split in splits]
        shown += [place for place in places if place not in shown]
        listed = " = ".join(
            f"{split}: {os.path.basename(path)}" for split, path in shown[:4]
        )
        more = f" and {len(places) - 4} more" if len(places) > 4 else ""
        pictures = tuple(Picture(path) for _, path in shown)
        text = f"{listed}{more} ({how})"
        findings.append(Finding(kind, "+".join(splits), text, len(places), pictures))
    return findings


def group_lookalikes(thumbs, ratios):
    """Groups pictures that differ by little more than an encoder's noise.

    16x16 grey levels are compared. A hash of the pixels would miss a copy that was saved
    as JPEG again or shrunk; a perceptual hash of 64 bits would join different frames of a
    camera that does not move. All pairs are compared: the distance of the 4x4 means,
    which is never larger than that of the levels, leaves few pairs to look at. Pictures
    without contrast, such as white pages, are like no other.

    Args:
        thumbs: uint8 `[N, 256]`, grey levels of 16x16 cells.
        ratios: float `[N]`, width / height.

    Returns:
        list of lists of row numbers, each row in one; those alone are groups of one.
    """
    num_rows = len(thumbs)
    leaders = np.arange(num_rows)  # the lowest row of each group
    cells = thumbs.reshape(num_rows, 4, 4, 4, 4)
    coarse = cells.mean(axis=(2, 4), dtype="float32").reshape(num_rows, 16) - 128
    norms = np.square(coarse).sum(axis=1)
    contrasts = thumbs.std(axis=1, dtype="float32")
    block = max(1, (1 << 22) // max(num_rows, 1))  # 16 MB of distances at a time
    for start in range(0, num_rows, block):
        rows = slice(start, start + block)
        products = coarse[rows] @ coarse[start:].T
        distances = norms[rows, None] + norms[None, start:] - 2 * products
        # One more for the rounding of large norms.
        firsts, seconds = np.nonzero(distances <= 16 * _SAME_RMS**2 + 1)
        keep = seconds > firsts
        firsts, seconds = firsts[keep] + start, seconds[keep] + start
        for part in range(0, len(firsts), 1 << 15):
            a, b = firsts[part : part + (1 << 15)], seconds[part : part + (1 << 15)]
            difference = thumbs[a].astype("int32") - thumbs[b]
            is_same = np.abs(difference).max(axis=1) <= _SAME_CELL
            squares = np.square(difference).mean(axis=1)
            is_same &= squares <= _SAME_RMS**2
            contrast = np.minimum(contrasts[a], contrasts[b])
            is_same &= squares < (_SAME_CONTRAST * contrast) ** 2
            is_same &= np.abs(ratios[a] / ratios[b] - 1) <= _SAME_RATIO
            leaders = _joined(leaders, a[is_same], b[is_same])
    groups = collections.defaultdict(list)
    for row, leader in enumerate(leaders.tolist()):
        groups[leader].append(row)
    return list(groups.values())


def _joined(leaders, firsts, seconds):
    """`leaders` with the groups of each pair of rows made one, all pairs at a time."""
    while len(firsts):
        firsts, seconds = leaders[firsts], leaders[seconds]
        is_open = firsts != seconds
        firsts, seconds = firsts[is_open], seconds[is_open]
        higher = np.maximum(firsts, seconds)
        np.minimum.at(leaders, higher, np.minimum(firsts, seconds))
        while (leaders != leaders[leaders]).any():
            leaders = leaders[leaders]
    return leaders
