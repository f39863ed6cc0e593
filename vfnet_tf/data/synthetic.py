"""A procedurally generated detection set, for a first run without any download.

Textured shapes of a few classes lie on a greyish background with gradients, clutter and
noise. Shape, texture and colour all tell the class, so that a detector trained from
scratch for a few minutes learns it; sizes from 8 pixels to half the image, overlap and
cut-off objects keep the task from being trivial. For studies that need classes as hard
to tell apart as those of COCO there is a second kind, `look_alikes`: each shape with
each texture in any colour, sixteen classes.
"""

import colorsys
import json
import math
import pathlib

import numpy as np
from PIL import Image

from vfnet_tf.files import cache_directory, filling_folder

# A new number when the same arguments give other bytes: old copies are not used then.
VERSION = 1
CLASS_NAMES = ("disc", "square", "triangle", "star")
#: kind -> the (shape, texture) of each class. A texture has the name of its shape in the
#: first kind, whose classes differ in colour too.
KINDS = {
    "shapes": tuple((shape, shape) for shape in CLASS_NAMES),
    "look_alikes": tuple(
        (shape, texture) for shape in CLASS_NAMES for texture in CLASS_NAMES
    ),
}
NUM_TRAIN = 400
NUM_VAL = 100
IMAGE_SIZE = (256, 320)
MIN_SIDE = 8

_TEXTURE_NAMES = {
    "disc": "ringed",
    "square": "checked",
    "triangle": "striped",
    "star": "dotted",
}
_HUES = {"disc": 0.0, "square": 0.6, "triangle": 0.35, "star": 0.14}
_MAX_OBJECTS = 6
_MIN_VISIBLE = 0.6
_MANIFEST = "synthetic.json"


def class_names(kind="shapes"):
    """The classes of a kind of set, a tuple of str; index = label."""
    if kind == "shapes":
        return CLASS_NAMES
    return tuple(f"{_TEXTURE_NAMES[texture]} {shape}" for shape, texture in KINDS[kind])


def _signed_distance(name, u, v):
    """Distance to the outline of a shape of circumradius 1, negative inside.

    `u` and `v` are float arrays, right and down from the centre.
    """
    if name == "disc":
        return np.hypot(u, v) - 1.0
    if name == "square":
        return np.maximum(np.abs(u), np.abs(v)) - math.sqrt(0.5)
    if name == "triangle":
        angles = math.pi / 2 + 2 * math.pi / 3 * np.arange(3)
        sides = [u * math.cos(angle) + v * math.sin(angle) for angle in angles]
        return np.max(sides, axis=0) - 0.5
    # A five-pointed star is ten mirror images of one edge, from an outer corner at
    # angle 0 and radius 1 to an inner one at 36 degrees.
    sector = math.pi / 5
    angle = np.abs((np.arctan2(v, u) + math.pi / 2 + sector) % (2 * sector) - sector)
    radius = np.hypot(u, v)
    inner = 0.5
    edge = np.array([inner * math.cos(sector) - 1.0, inner * math.sin(sector)])
    normal_x, normal_y = np.array([edge[1], -edge[0]]) / np.hypot(*edge)
    along, across = radius * np.cos(angle) - 1.0, radius * np.sin(angle)
    return along * normal_x + across * normal_y


def _texture(name, u, v, phase):
    """Brightness in [0, 1] of the texture with the name of a shape."""
    if name == "disc":  # Rings around the centre.
        return 0.5 + 0.5 * np.cos(9.0 * np.hypot(u, v) + phase)
    if name == "square":  # A checkerboard.
        return (np.sin(5.5 * u + phase) * np.sin(5.5 * v + phase) > 0).astype(float)
    if name == "triangle":  # Stripes.
        return 0.5 + 0.5 * np.sin(11.0 * u + phase)
    # Dots.
    return (np.sin(9.0 * u + phase) + np.sin(9.0 * v + phase) > 0.6).astype(float)


def _patch(center, reach, image_size):
    """(slices, dx, dy) of the pixels around a centre; None if none lies in the image."""
    height, width = image_size
    x1, x2 = max(0, int(center[0] - reach)), min(width, int(center[0] + reach) + 1)
    y1, y2 = max(0, int(center[1] - reach)), min(height, int(center[1] + reach) + 1)
    if x1 >= x2 or y1 >= y2:
        return None
    dy, dx = np.mgrid[y1:y2, x1:x2] + 0.5
    return (slice(y1, y2), slice(x1, x2)), dx - center[0], dy - center[1]


def _rotate(dx, dy, angle):
    cos, sin = math.cos(angle), math.sin(angle)
    return cos * dx + sin * dy, cos * dy - sin * dx


def _greyish(rng):
    """A colour of low saturation, float `[3]` in 0..255."""
    return rng.uniform(40, 200) + rng.normal(0, 9, 3)


def _blend(image, where, alpha, color):
    image[where] += alpha[..., None] * (color - image[where])


def _background(rng, image_size):
    """Gradient, slow noise and clutter: float `[H, W, 3]` in 0..255."""
    height, width = image_size
    y, x = np.mgrid[0:height, 0:width]
    direction = rng.uniform(0, 2 * math.pi)
    cos, sin = math.cos(direction), math.sin(direction)
    slope = (x / width - 0.5) * cos + (y / height - 0.5) * sin
    coarse = rng.normal(0, 18, (8, 10)).astype("float32")
    slow = np.asarray(Image.fromarray(coarse).resize((width, height), Image.BICUBIC))
    image = _greyish(rng) + (slope * rng.uniform(0, 80) + slow)[..., None]
    for _ in range(rng.integers(5, 12)):
        center = rng.uniform(0, 1, 2) * (width, height)
        # Half blurred ellipses, half thin lines.
        length = rng.uniform(0.03, 0.25) * width
        is_line = rng.random() < 0.5
        breadth = rng.uniform(0.8, 2.5) if is_line else length * rng.uniform(0.4, 1)
        softness = 1.0 if is_line else rng.uniform(1, 8)
        angle, color = rng.uniform(0, math.pi), _greyish(rng)
        strength = rng.uniform(0.3, 0.8)
        where, dx, dy = _patch(center, length + softness, image_size)
        u, v = _rotate(dx, dy, angle)
        if is_line:
            distance = np.maximum(np.abs(u) - length, np.abs(v) - breadth)
        else:
            distance = (np.hypot(u / length, v / breadth) - 1.0) * breadth
        alpha = strength * np.clip(0.5 - distance / softness, 0, 1)
        _blend(image, where, alpha, color)
    return image


def _draw_side(rng, image_size):
    """Size of the next object in pixels: mostly 32 to 128, at most half the image."""
    largest = min(image_size) / 2
    kind = rng.random()
    if kind < 0.15:
        low, high = MIN_SIDE, 32
    elif kind < 0.9:
        low, high = 32, 96
    else:
        low, high = 96, 128
    low, high = min(low, largest), min(high, largest)
    return float(np.exp(rng.uniform(math.log(low), math.log(high))))


def _place(rng, kind, image_size, owner, areas):
    """Draws one object: (label, where, alpha, color `[h, w, 3]`, mask), None if unfit.

    `owner` is int `[H, W]`, the object on top at each pixel, -1 for none; `areas` are the
    pixel counts of the objects so far.
    """
    height, width = image_size
    label = int(rng.integers(len(KINDS[kind])))
    shape, texture = KINDS[kind][label]
    radius = _draw_side(rng, image_size) / 2
    # Up to about a seventh of an object may lie beyond the border.
    margin = 0.7 * radius
    center = (rng.uniform(margin, width - margin), rng.uniform(margin, height - margin))
    angle = rng.uniform(-math.pi / 9, math.pi / 9)
    phase, depth = rng.uniform(0, 2 * math.pi), rng.uniform(0.2, 0.45)
    if kind == "shapes":
        hue = (_HUES[shape] + rng.normal(0, 0.02)) % 1.0
    else:
        hue = rng.random()
    saturation, value = rng.uniform(0.65, 1.0), rng.uniform(0.7, 1.0)
    light = rng.uniform(-0.25, 0.25)
    where, dx, dy = _patch(center, radius + 1, image_size)
    u, v = _rotate(dx / radius, dy / radius, angle)
    alpha = np.clip(0.5 - _signed_distance(shape, u, v) * radius, 0, 1)
    mask = alpha > 0.5
    if not mask.any() or min(_extent(mask)[2:]) < MIN_SIDE:
        return None
    below, counts = np.unique(owner[where][mask], return_counts=True)
    for index, count in zip(below, counts, strict=True):
        if index >= 0:
            visible = np.count_nonzero(owner == index) - count
            if visible < _MIN_VISIBLE * areas[index]:
                return None
    brightness = 1.0 - depth * _texture(texture, u, v, phase) + light * u
    base = 255 * np.array(colorsys.hsv_to_rgb(hue, saturation, value))
    return label, where, alpha, brightness[..., None] * base, mask


def _extent(mask):
    """Tight `[x, y, width, height]` of a mask, in pixels of it."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    x, y = int(columns[0]), int(rows[0])
    return [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y]


def draw_scene(rng, image_size=IMAGE_SIZE, kind="shapes"):
    """Draws one image.

    Args:
        rng: `numpy.random.Generator`.
        image_size: (height, width) in pixels, at least 32 each.
        kind: key of `KINDS`.

    Returns:
        (image uint8 `[H, W, 3]` RGB, list of `(label, [x, y, width, height], area)`):
        boxes hold the whole shape inside the image, also where another covers it; the
        area counts the shape's pixels.
    """
    image = _background(rng, image_size)
    owner = np.full(image_size, -1)
    objects, areas = [], []
    num_objects = int(rng.integers(1, _MAX_OBJECTS + 1))
    for _ in range(30):
        if len(objects) == num_objects:
            break
        placed = _place(rng, kind, image_size, owner, areas)
        if placed is None:
            continue
        label, where, alpha, color, mask = placed
        _blend(image, where, alpha, color)
        owner[where][mask] = len(objects)
        x, y, w, h = _extent(mask)
        areas.append(int(np.count_nonzero(mask)))
        box = [x + where[1].start, y + where[0].start, w, h]
        objects.append((label, box, areas[-1]))
    image += rng.normal(0, rng.uniform(2, 8), (*image_size, 1))
    return np.clip(np.rint(image), 0, 255).astype("uint8"), objects


def _write_split(root, split, number, count, image_size, seed, kind):
    """Writes the images of one split and its annotation file."""
    (root / split).mkdir()
    (root / "annotations").mkdir(exist_ok=True)
    images, annotations = [], []
    height, width = image_size
    for index in range(count):
        # Each image has its own generator: more images leave the first ones as is.
        rng = np.random.default_rng([seed, number, index])
        pixels, objects = draw_scene(rng, image_size, kind)
        name = f"{index + 1:06d}.jpg"
        Image.fromarray(pixels).save(root / split / name, quality=92)
        size = {"height": height, "width": width}
        images.append({"id": index + 1, "file_name": name, **size})
        for label, box, area in objects:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": label + 1,
                    "bbox": box,
                    "area": area,
                    "iscrowd": 0,
                    "segmentation": [],
                }
            )
    categories = [
        {"id": label + 1, "name": name, "supercategory": "shape"}
        for label, name in enumerate(class_names(kind))
    ]
    content = {
        "info": {"description": f"vfnet_tf synthetic shapes, version {VERSION}"},
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }
    path = root / "annotations" / f"instances_{split}.json"
    path.write_text(json.dumps(content))


def default_synthetic_directory(
    num_train=NUM_TRAIN, num_val=NUM_VAL, image_size=IMAGE_SIZE, seed=0, kind="shapes"
):
    """Returns the folder in the cache that a set with these arguments has, a `Path`."""
    height, width = image_size
    name = f"v{VERSION}-{num_train}-{num_val}-{height}x{width}-seed{seed}"
    if kind != "shapes":
        name = f"{kind}-{name}"
    return cache_directory() / "synthetic" / name


def make_synthetic_dataset(
    directory=None,
    num_train=NUM_TRAIN,
    num_val=NUM_VAL,
    image_size=IMAGE_SIZE,
    seed=0,
    kind="shapes",
):
    """Makes the set in a folder, or finds it there from an earlier call.

    The same arguments give the same bytes (with the same JPEG library). A folder is
    complete or absent: it is written aside and renamed.

    Args:
        directory: str or path; None takes `default_synthetic_directory(...)`.
        num_train: int >= 1, images in `train/`.
        num_val: int >= 1, images in `val/`.
        image_size: (height, width) in pixels, at least 64 each.
        seed: int >= 0.
        kind: `"shapes"`, four classes that are easily told apart, or `"look_alikes"`,
            sixteen that are not.

    Returns:
        `Path` of the folder, laid out as `data.coco.find_coco_splits` expects.

    Raises:
        ValueError: for an argument out of range, or a folder that holds other things.
    """
    if kind not in KINDS:
        raise ValueError(f"`kind` must be one of {list(KINDS)}. Received: kind={kind}")
    image_size = tuple(int(side) for side in image_size)
    for name, value, lowest in (
        ("num_train", num_train, 1),
        ("num_val", num_val, 1),
        ("seed", seed, 0),
        ("image_size", min(image_size), 64),
    ):
        if value < lowest:
            raise ValueError(f"`{name}` must be >= {lowest}. Received: {name}={value}")
    manifest = {
        "version": VERSION,
        "num_train": num_train,
        "num_val": num_val,
        "image_size": list(image_size),
        "seed": seed,
    }
    if kind != "shapes":
        manifest["kind"] = kind
    if directory is None:
        directory = default_synthetic_directory(
            num_train, num_val, image_size, seed, kind
        )
    directory = pathlib.Path(directory).expanduser()
    if _is_made(directory, manifest):
        return directory
    with filling_folder(directory, lambda: _is_made(directory, manifest)) as aside:
        for number, (split, count) in enumerate(
            (("train", num_train), ("val", num_val))
        ):
            _write_split(aside, split, number, count, image_size, seed, kind)
        (aside / _MANIFEST).write_text(json.dumps(manifest))
    return directory


def _is_made(directory, manifest):
    """Whether the folder holds this set; other content is refused, never replaced."""
    if not directory.exists() or not any(directory.iterdir()):
        return False
    try:
        found = json.loads((directory / _MANIFEST).read_text())
    except (OSError, ValueError):
        found = None
    if found != manifest:
        raise ValueError(
            "`directory` must be absent, empty, or hold the synthetic set of the same "
            f"arguments {manifest}. Received: directory={str(directory)!r} with "
            f"{found if found else 'other content'}"
        )
    return True
