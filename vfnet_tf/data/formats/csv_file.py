"""CSV: one object a line, `split,image,x1,y1,x2,y2,label`.

Corners are pixels of the upright image, 0 at its left and upper edge and its width and
height at the others.
"""

import csv
import functools
import io
import os
import pathlib

from vfnet_tf.data.dataset import BAD_BOX, UNKNOWN_CATEGORY
from vfnet_tf.data.folders import best_folder, list_folder, list_folders
from vfnet_tf.data.formats.coco import image_folders
from vfnet_tf.data.formats.coco_content import CocoContent, read_class_names
from vfnet_tf.data.splits import SPLITS, FoundSplits, by_split, split_named
from vfnet_tf.data.text import NOT_UTF8, is_valid, plain_name, printable, read_text
from vfnet_tf.data.values import CROWD_FLAGS, is_blank, read_number, read_size
from vfnet_tf.foreign_text import clipped, one_line

COLUMNS = ("split", "image", "x1", "y1", "x2", "y2", "label", "crowd")
# Names that TensorFlow's older tools and others give to columns.
_ALIASES = {"filename": "image", "class": "label"}
_ALIASES |= {"xmin": "x1", "ymin": "y1", "xmax": "x2", "ymax": "y2"}
_NEEDED = frozenset(COLUMNS) - {"split", "crowd"}
_HEADERLESS = ("image", "x1", "y1", "x2", "y2", "label")
_CORNERS = ("x1", "y1", "x2", "y2")
NO_LABEL = "line has no label"

# A thousandth of a pixel.
_DECIMALS = 3


def is_csv(directory):
    """Whether a folder has csv files that `find_csv_splits` can read; cheap."""
    return bool(_split_files(pathlib.Path(directory))[0])


def find_csv_splits(path):
    """Finds the splits of a CSV file, or of a folder of CSV files.

    The first line names the columns, in any order: `image` (or `filename`; relative to
    the file, or to a folder beside it that is called `images` or as the split), `x1, y1,
    x2, y2` (or `xmin, ymin, xmax, ymax`) and `label` (or `class`). Further columns are
    optional: `split` (see `splits.split_named`; without it all is the training split),
    `crowd` or another of `values.CROWD_FLAGS` (1: kept out of training, ignored in
    evaluation), `width` and `height` (of the image, checked). Without names there must be
    six columns, `image,x1,y1,x2,y2,label`. An image whose corners and label are empty has
    no objects; `nan`, as pandas writes it, is empty too. Classes are those of
    `classes.txt` beside the file, else all labels in alphabetical order.

    Args:
        path: str or path of the file, or of a folder with one such file, with one
            that is named for each split, or with one in each folder that is.

    Returns:
        `FoundSplits`.

    Raises:
        ValueError: if there is no such file, or it is not one of the format.
    """
    path = pathlib.Path(path).expanduser().absolute()
    files, unused = ({"": path}, []) if path.is_file() else _split_files(path)
    if not files:
        names = [file.name for file in unused]
        raise ValueError(
            "There must be one CSV file with the columns "
            f"{', '.join(_HEADERLESS)}, or one that is named for each split. "
            f"Received: {str(path)!r} with {names}"
        )
    tables, faults = {}, {}
    for split, file in files.items():
        try:
            rows = _read_rows(file)
        except ValueError as error:  # The other splits are read.
            faults[split] = error
            continue
        if split:  # Also without a line.
            tables[split] = (file, rows)
            continue
        for row in rows:
            named = row.get("split", "train")
            own = split_named(named)
            if own is None:
                raise ValueError(
                    f"`split` must be one of {', '.join(SPLITS)}, valid or validation. "
                    f"Received: {clipped(named)} in {file} line {row['line']}"
                )
            tables.setdefault(own, (file, []))[1].append(row)
    if not tables and faults:
        raise next(iter(faults.values()))
    names = read_class_names(path if path.is_dir() else path.parent)
    if names is None:
        rows = [row for _, rows in tables.values() for row in rows]
        labels = {row["label"] for row in rows if "error" not in row}
        names = sorted(label for label in labels if not is_blank(label))
        if not names:
            wrong = [
                f"line {row['line']}: {row.get('error', NO_LABEL)}{row.get('shown', '')}"
                for row in rows
            ]
            raise ValueError(
                "A CSV file must have at least one line with a label. Received: "
                f"{str(path)!r}, {', '.join(wrong[:3]) or 'without a line'}"
            )
    parts = {
        split: functools.partial(_write_split, split, *table, names)
        for split, table in tables.items()
    }
    unused = [os.path.relpath(file, path) for file in unused]
    return FoundSplits(parts, unused, faults=faults)


def write_csv(out, split, images, class_names):
    """Appends one split to `annotations.csv`, boxes to a thousandth of a pixel.

    For the arguments see `labelled_image`. Returns 0: the format has all.
    """
    path = out / "annotations.csv"
    is_new = not path.exists()
    with open(path, "a", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if is_new:
            writer.writerow(COLUMNS)
        for image in images:
            name = f"images/{image.name}"
            if not len(image.boxes):
                writer.writerow([split, name, "", "", "", "", "", ""])
            for box, label, is_crowd in image.objects():
                corners = [f"{v:.{_DECIMALS}f}".rstrip("0").rstrip(".") for v in box]
                label = class_names[label]
                writer.writerow([split, name, *corners, label, int(is_crowd)])
    (out / "classes.txt").write_text("\n".join(class_names) + "\n", encoding="utf-8")
    return 0


def _columns(first):
    """The column names of a file by its first line; None if it is not of the format."""
    texts = [text.strip().lower() for text in first]
    names = [_ALIASES.get(text, text) for text in texts]
    if set(names) >= _NEEDED and len(set(names)) == len(names):
        return names
    corners = texts[1:5]
    are_numbers = all(read_number(text) is not None for text in corners)
    if len(texts) == 6 and (are_numbers or all(map(is_blank, corners))):
        return list(_HEADERLESS)
    return None


def _split_files(root):
    """Finds the csv files of a folder.

    Returns:
        (dict split -> `Path`, or "" -> the only one; list of `Path`: files that are not
        used, with the columns of the format or the name of a split).
    """
    in_root = list_folder(root, {".csv"})
    files = list(filter(_has_columns, in_root))
    found = by_split(files, lambda path: path.stem)
    alone = []
    for folder in list_folders(root).values():
        inside = list(filter(_has_columns, list_folder(folder, {".csv"})))
        files += inside
        alone += inside if len(inside) == 1 else []
    of_folders = by_split(alone, lambda path: path.parent.name)
    found = {split: paths[0] for split, paths in {**of_folders, **found}.items()}
    found = {split: found[split] for split in SPLITS if split in found}
    at_root = [path for path in files if path.parent == root]
    if not found and len(at_root) == 1:
        found[""] = at_root[0]
    files += [path for path in in_root if split_named(path.stem) and path not in files]
    return found, [path for path in files if path not in found.values()]


def _has_columns(path):
    try:
        # As much as the first line can be.
        text = read_text(path, csv.field_size_limit())
        return _columns(_first_line(_csv_reader(text))) is not None
    except (OSError, ValueError, csv.Error):
        return False


def _csv_reader(text):
    # A quote may stand behind a comma and a blank. Blanks around cells do not count.
    return csv.reader(io.StringIO(text, newline=""), skipinitialspace=True)


def _first_line(reader):
    return next(filter(any, reader), [])


def _read_rows(path):
    """All lines as dicts column -> text, with `line` and, if it is wrong, `error`."""
    rows = []
    try:
        reader = _csv_reader(read_text(path))
        first = _first_line(reader)
        names = _columns(first)
        if names is not None:
            has_names = any(text.strip().lower() in ("x1", "xmin") for text in first)
            if not has_names:
                rows.append(_row(names, first, reader.line_num))
            rows += [_row(names, texts, reader.line_num) for texts in reader if texts]
    except (csv.Error, ValueError) as error:
        raise ValueError(
            f"The file must be CSV ({error}). Received: {str(path)!r}"
        ) from error
    if names is None:
        raise ValueError(
            "A CSV file must begin with a line that names the columns "
            f"{', '.join(_HEADERLESS)} (and split, crowd, width, height), separated by "
            "commas, or have those six without names. Received: "
            f"{str(path)!r}, which begins with {clipped(first)}"
        )
    return rows


def _row(names, texts, line):
    row = {name: text.strip() for name, text in zip(names, texts, strict=False)}
    row["line"] = line
    if len(texts) != len(names):
        row["error"] = f"line has not {len(names)} columns"
    elif not all(map(is_valid, texts)):
        wrong = next(text for text in texts if not is_valid(text))
        row["error"] = f"line {NOT_UTF8}, save the file so"
        row["shown"] = f" ({one_line(printable(wrong), 80)})"
    elif is_blank(row["image"]):
        row["error"] = "line names no image"
    else:
        row["label"] = plain_name(row["label"])
        # One image in two spellings would become two.
        row["image"] = plain_name(row["image"]).removeprefix("./")
    return row


def _stated_sizes(rows):
    """Sizes that lines state: dicts image -> (height, width) and image -> what is wrong."""
    sizes, errors, firsts = {}, {}, {}
    for row in rows:
        stated = row.get("height"), row.get("width")
        if "error" in row or all(map(is_blank, stated)):
            continue
        image = row["image"]
        try:
            size = read_size(*stated)
        except ValueError as error:
            errors[image] = f"{error} (line {row['line']})"
            continue
        if size is None:
            continue
        sizes[image] = size
        line, first = firsts.setdefault(image, (row["line"], size))
        if first != size:
            errors[image] = (
                f"must have one size, line {line} states height and width {first}, "
                f"line {row['line']} {size}"
            )
    return sizes, errors


def _write_split(split, path, rows, names):
    images = list(dict.fromkeys(row["image"] for row in rows if "error" not in row))
    folders = [path.parent, *image_folders(path.parent, split)]
    root = best_folder(folders, images) or path.parent
    content = CocoContent(names, source=f"{path} ({split})")
    labels = {name: label for label, name in enumerate(names)}
    sizes, errors = _stated_sizes(rows)
    image_ids = {}
    for row in rows:
        source = f"{path.name} line {row['line']}"
        if "error" in row:
            content.drop(row["error"], source + row.get("shown", ""))
            continue
        image = row["image"]
        if image not in image_ids:
            image_ids[image] = content.add_image(
                image, size=sizes.get(image), error=errors.get(image)
            )
        corners, label = [row[corner] for corner in _CORNERS], row["label"]
        if label not in labels:
            # A blank such as `nan` is a class only where classes.txt names it.
            if not is_blank(label):
                content.drop(UNKNOWN_CATEGORY, f"{source} ({label!r})")
            elif not all(map(is_blank, corners)):
                content.drop(NO_LABEL, f"{source} ({', '.join(corners)})")
            continue
        numbers = [read_number(corner) for corner in corners]
        if None in numbers:
            content.drop(BAD_BOX, f"{source} ({', '.join(corners)})")
            continue
        x1, y1, x2, y2 = numbers
        content.add_box(
            image_ids[image],
            labels[label],
            [x1, y1, x2 - x1, y2 - y1],
            source=source,
            flags={name: row[name] for name in CROWD_FLAGS if name in row},
        )
    return content.write_to_cache(split), str(root)
