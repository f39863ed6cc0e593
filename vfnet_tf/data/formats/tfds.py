"""TensorFlow Datasets: any prepared builder whose features have `objects/bbox`.

The files that `download_and_prepare` made are read, without the builder's own code and
without the network. The encoded images are written into the cache once, as files.
"""

import functools
import hashlib
import os
import pathlib
import re

import numpy as np

from vfnet_tf.data.dataset import UNKNOWN_CATEGORY
from vfnet_tf.data.formats.coco_classes import COCO_CATEGORY_IDS, COCO_CLASS_NAMES
from vfnet_tf.data.formats.coco_content import CocoContent
from vfnet_tf.data.images.inspect import inspect_image
from vfnet_tf.data.splits import SPLITS, FoundSplits, by_split
from vfnet_tf.data.values import CROWD_FLAGS, read_number
from vfnet_tf.files import cache_directory, filling_folder

_VERSION = re.compile(r"\d+\.\d+\.\d+")
_ANNOTATIONS = "annotations.json"


def find_tfds_splits(name, progress=None):
    """Finds the splits of a prepared dataset of TensorFlow Datasets.

    Boxes are those of `objects/bbox`, parts of the image's sides in the order (ymin,
    xmin, ymax, xmax), classes those of `objects/label`. Objects with `is_crowd` or
    `is_difficult` are kept out of training and ignored in evaluation. For names of splits
    see `splits.split_named`. With COCO's classes the ids are COCO's own.

    Args:
        name: str, `NAME`, `NAME/CONFIG` or either with `:VERSION`, looked for in
            `TFDS_DATA_DIR` (else `~/tensorflow_datasets`); or the path of a prepared
            directory. Without a version the newest is taken.
        progress: function of the number of images that returns an object with
            `add(count)` and `close()`, which counts images that are written.

    Returns:
        `FoundSplits`; its functions write the images too, unless the cache has them.

    Raises:
        ValueError: if the dataset is not prepared, or has no such boxes and labels.
        ImportError: the extra `tfds` is not installed.
    """
    directory = _prepared_directory(str(name))
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            "Reading tfds: needs TensorFlow Datasets: pip install 'vfnet_tf[tfds]'"
        ) from error
    builder = tfds.builder_from_directory(directory)
    features = dict(builder.info.features.items())
    # Objects are a sequence of dicts; other features have no names.
    objects = getattr(features.get("objects"), "feature", {})
    objects = dict(objects.items()) if hasattr(objects, "items") else {}
    has_names = hasattr(objects.get("label"), "names")
    if "image" not in features or "bbox" not in objects or not has_names:
        raise ValueError(
            "The features must have `image`, `objects/bbox` and the class label "
            f"`objects/label`. Received: {str(directory)!r} with {list(features)}, "
            f"objects with {list(objects)}"
        )
    # Old releases have this format only; None stands for an unknown one.
    bbox_format = getattr(objects["bbox"], "bbox_format", "REL_YXYX")
    bbox_format = getattr(bbox_format, "name", bbox_format)
    if bbox_format != "REL_YXYX":
        raise ValueError(
            "`objects/bbox` must be (ymin, xmin, ymax, xmax) in parts of the sides. "
            f"Received: {bbox_format} in {str(directory)!r}"
        )
    named = by_split(builder.info.splits)
    if not named:
        raise ValueError(
            f"There must be a split named {', '.join(SPLITS)} or validation. Received: "
            f"{str(directory)!r} with {list(builder.info.splits)}"
        )
    used = {split: names[0] for split, names in named.items()}
    parts = {
        split: functools.partial(_write_split, builder, own, progress)
        for split, own in used.items()
    }
    return FoundSplits(parts, sorted(set(builder.info.splits) - set(used.values())))


def _is_prepared(directory):
    return (directory / "dataset_info.json").is_file()


def _newest_version(directory):
    """The prepared version of the highest number in a folder, None without one."""
    versions = [
        path
        for path in directory.glob("*.*.*")
        if _VERSION.fullmatch(path.name) and _is_prepared(path)
    ]
    return max(versions, key=lambda p: tuple(map(int, p.name.split("."))), default=None)


def _prepared_directory(name):
    """The folder with the `dataset_info.json` of a name or path."""
    path = pathlib.Path(name).expanduser()
    if _is_prepared(path):
        return path.absolute()
    root = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    root = pathlib.Path(root).expanduser().absolute()
    plain, _, version = name.partition(":")
    folder = root / plain
    if version:
        found = folder / version if _is_prepared(folder / version) else None
    else:
        found = _newest_version(folder)
    if found is not None:
        return found
    configs = [p.name for p in sorted(folder.glob("*")) if _newest_version(p)]
    if len(configs) == 1 and not version:
        return _newest_version(folder / configs[0])
    if configs:
        raise ValueError(
            "The dataset has configs, name one as NAME/CONFIG: "
            f"{', '.join(configs)}. Received: tfds:{name}"
        )
    raise ValueError(
        f"The dataset must be prepared in {root} (TFDS_DATA_DIR names another folder), "
        "nothing is downloaded here. Where there is a network, prepare it by `python -c "
        f"\"import tensorflow_datasets as tfds; tfds.builder('{name}', "
        f"data_dir='{root}').download_and_prepare()\"`. Received: tfds:{name}"
    )


def _fingerprint(directory):
    """A hash that changes when a prepared dataset is made again."""
    state = [str(directory)]
    for path in sorted(directory.iterdir()):
        status = path.stat()
        state.append(f"{path.name} {status.st_size} {status.st_mtime_ns}")
    return hashlib.sha256("\n".join(state).encode()).hexdigest()[:16]


def _write_split(builder, own, progress):
    """Writes the images of a split and its annotations, unless the cache has them."""
    directory = pathlib.Path(os.fspath(builder.data_path))
    name = builder.info.full_name.replace("/", "-")
    folder = cache_directory() / "tfds" / f"{name}-{_fingerprint(directory)}" / own
    if not folder.is_dir():
        with filling_folder(folder, folder.is_dir) as aside:
            _write_images(builder, own, aside, progress)
    return str(folder / _ANNOTATIONS), str(folder)


def _write_images(builder, own, folder, progress):
    import tensorflow_datasets as tfds

    label = builder.info.features["objects"].feature["label"]
    names = tuple(label.names)
    category_ids = COCO_CATEGORY_IDS if names == COCO_CLASS_NAMES else None
    source = f"tfds:{builder.info.full_name} ({own})"
    content = CocoContent(names, category_ids, source=source)
    examples = builder.as_dataset(
        split=own,
        decoders={"image": tfds.decode.SkipDecoding()},
        shuffle_files=False,
        read_config=tfds.ReadConfig(interleave_cycle_length=1),
    )
    total = builder.info.splits[own].num_examples
    shown = None if progress is None else progress(total)
    for number, example in enumerate(tfds.as_numpy(examples), 1):
        data = example["image"]
        suffix = ".png" if data.startswith(b"\x89PNG") else ".jpg"
        file = folder / f"{number:08d}{suffix}"
        file.write_bytes(data)
        _add_example(content, example, file, number)
        if shown is not None:
            shown.add(1)
    if shown is not None:
        shown.close()
    content.write(folder / _ANNOTATIONS)


def _add_example(content, example, file, number):
    header = inspect_image(str(file), full=False)
    height, width = header.height, header.width
    # COCO's server wants COCO's ids. In other datasets the ids are texts.
    image_id = example.get("image/id")
    image_id = content.add_image(
        file.name,
        image_id=int(image_id) if isinstance(image_id, np.integer) else number,
        size=None if header.error else (height, width),
        error=header.error or None,
        code=header.code,
    )
    objects, labels = example["objects"], range(len(content.category_ids))
    for index, (box, label) in enumerate(
        zip(objects["bbox"].tolist(), objects["label"].tolist(), strict=True)
    ):
        ymin, xmin, ymax, xmax = box
        source = f"example {number} object {index + 1}"
        if label not in labels:  # -1 is an unknown class.
            content.drop(UNKNOWN_CATEGORY, f"{source} (label {label})")
            continue
        flags = {n: _as_json(objects[n][index]) for n in CROWD_FLAGS if n in objects}
        area = read_number(objects["area"][index]) if "area" in objects else None
        content.add_box(
            image_id,
            label,
            [
                xmin * width,
                ymin * height,
                (xmax - xmin) * width,
                (ymax - ymin) * height,
            ],
            source=source,
            flags=flags,
            # Areas of masks are whole numbers: that of a small mask may be 0.
            area=area if area is not None and area > 0 else None,
            # With a number of its own, an object with the box of another one stays.
            annotation_id=len(content.content["annotations"]) + 1,
        )


def _as_json(value):
    return value.decode() if isinstance(value, bytes) else value.item()
