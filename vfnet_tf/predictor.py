"""Detections for images from anywhere: files, folders, globs, URLs, arrays, videos.

An image is read, resized, normalised and padded by the functions of `data/` that the
evaluation pipeline is made of, each on the smallest canvas that holds it (as in the
official code), so that an image gives the same detections whatever else is predicted.
"""

import collections
import dataclasses
import fnmatch
import glob
import os
import pathlib
import re
import tempfile
import urllib.error
import urllib.parse
import urllib.request

import numpy as np
from PIL import Image

from vfnet_tf import video, visualization
from vfnet_tf.config import load_config
from vfnet_tf.data.files import is_hidden, list_tree, regular_file_error
from vfnet_tf.data.images.inspect import IMAGE_SUFFIXES, MAX_PIXELS, inspect_image
from vfnet_tf.data.images.numpy_decode import pixels_of
from vfnet_tf.data.images.reasons import ImageError
from vfnet_tf.data.unread_files import OTHER_IMAGE_SUFFIXES
from vfnet_tf.evaluation.coco import xyxy_to_xywh
from vfnet_tf.progress import Progress

#: Bytes that a URL may deliver; a photograph has a tenth of it.
MAX_DOWNLOAD = 64 * 2**20
DOWNLOAD_TIMEOUT = 30.0
#: Scores that pictures show where the caller gave no threshold. The detector's own
#: (0.05) is for average precision: most of what it lets through is wrong.
DRAW_THRESHOLD = 0.3

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_URL_SCHEMES = ("http", "https", "file")
_WEIGHTS = ("best.weights.h5", "last.weights.h5")
# As in evaluation: a thousandth of a pixel moves no metric and keeps a json short.
_BOX_DECIMALS = 3


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """The detections in one image, best first.

    Attributes:
        boxes: float32 `[N, 4]`, `(x1, y1, x2, y2)` in pixels of the original image.
        scores: float32 `[N]` in [0, 1], descending.
        labels: int32 `[N]` in [0, K).
        names: N strings, the class of each detection.
        height: int, pixels of the original image, upright.
        width: int, pixels of the original image, upright.
        source: str, path or URL; None for an image that came as an array.
        index: int, place of the image among all of the call, from 0.
        class_names: K strings by label.
        category_ids: K ints by label, for COCO-format files.
        draw_threshold: float, the score above which `draw` shows a detection.
        pixels: uint8 `[height, width, 3]` RGB, or None for a file, which `image` reads
            again.
        frame: int, place of the frame in its video, from 0; None for an image.
        time: float, seconds from the video's first frame; None for an image.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    names: list
    height: int
    width: int
    source: str | None
    index: int
    class_names: tuple
    category_ids: tuple
    draw_threshold: float = DRAW_THRESHOLD
    pixels: np.ndarray | None = None
    frame: int | None = None
    time: float | None = None

    def __len__(self):
        return len(self.scores)

    def __repr__(self):
        counts = collections.Counter(self.names)
        found = ", ".join(f"{count} {name}" for name, count in counts.most_common())
        source = self.source or f"image {self.index}"
        if self.frame is not None:
            source += f" frame {self.frame} at {self.time:.2f} s"
        size = f"{self.height}x{self.width}"
        return f"Prediction({source}, {size}: {found or 'nothing'})"

    @property
    def image(self):
        """uint8 `[height, width, 3]` RGB; a file, or its frame, is read again."""
        if self.pixels is not None:
            return self.pixels
        if self.time is not None:
            return video.read_frame(self.source, self.time)
        return self._read_file(self.source)

    def _read_file(self, path):
        return load_file(path)

    def draw(self, score_threshold=None, **style):
        """Draws the detections on a copy of the image.

        Args:
            score_threshold: float, weaker detections are not drawn. None takes the
                threshold that the predictor was called with, 0.3 if with none.
            **style: further arguments of `visualization.draw_detections`.

        Returns:
            uint8 `[h, w, 3]`; a small image is enlarged to make captions readable.
        """
        if score_threshold is None:
            score_threshold = self.draw_threshold
        return visualization.draw_detections(
            self.image,
            self.boxes,
            self.labels,
            self.scores,
            self.class_names,
            score_threshold=score_threshold,
            **style,
        )

    def save(self, path, score_threshold=None, **style):
        """Writes what `draw` gives; the path's ending says the format.

        Returns:
            The path, a `pathlib.Path`.

        Raises:
            ValueError: if the ending is not of an image, or the path is the image that
                was predicted.
        """
        path = pathlib.Path(path)
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            raise ValueError(
                f"`path` must end in one of {', '.join(sorted(IMAGE_SUFFIXES))}. "
                f"Received: path={path}"
            )
        is_file = self.source is not None and not _is_url(self.source)
        if is_file:
            _check_is_another(path, self.source)
        visualization.save_image(path, self.draw(score_threshold, **style))
        return path

    def to_coco(self, image_id=None):
        """Lists the detections in COCO's results format.

        Args:
            image_id: int, the image's id; its place in the call counted from 1 if None.

        Returns:
            list of dicts with `image_id`, `category_id`, `bbox`, `[x, y, width,
            height]`, and `score`, boxes in pixels of the original image to a thousandth.
        """
        image_id = self.index + 1 if image_id is None else image_id
        return [
            {
                "image_id": image_id,
                "category_id": int(self.category_ids[label]),
                "bbox": [round(value, _BOX_DECIMALS) for value in box],
                # str of a float32 is the shortest text that gives it back
                "score": float(str(score)),
            }
            for box, score, label in zip(
                xyxy_to_xywh(self.boxes).tolist(), self.scores, self.labels, strict=True
            )
        ]

    def to_supervision(self):
        """The detections for the library supervision, with its trackers and zones.

        Returns:
            `supervision.Detections`: `xyxy`, `confidence`, `class_id`, and the names as
            `data["class_name"]`, where its annotators look for them.

        Raises:
            ImportError: without supervision.
        """
        try:
            import supervision
        except ImportError as error:
            raise ImportError(
                "`to_supervision` needs supervision: pip install 'vfnet_tf[supervision]'"
            ) from error
        return supervision.Detections(
            xyxy=self.boxes,
            confidence=self.scores,
            class_id=self.labels,
            data={"class_name": np.array(self.names, dtype=str)},
        )


class Predictor:
    """A detector with everything around it: from a path or pixels to detections.

    Args:
        detector: a `DenseDetector`, e.g. a `VFNet`.
        config: its `Config`, or what `load_config` takes. `data` says how images become
            network inputs; `class_names` and `category_ids` name the labels. Without
            them names are "class 0", "class 1", ... and ids count from 1.
        batch_size: int, images that go through the detector at a time. Larger than 1
            pays on accelerators, where many images share a size.
        tta_sizes: list of (short, long) pixels, or (height, width) if the config does
            not keep the ratio: sizes at which each image is looked at, plain and
            mirrored, for one NMS over all (test-time augmentation). Empty for the
            config's size alone.

    Raises:
        ValueError: if the number of names or ids is not the detector's of classes.

    >>> predictor = Predictor.from_checkpoint("runs/mine")
    >>> prediction = predictor("street.jpg", score_threshold=0.4)
    >>> picture = prediction.save("street_detected.png")
    >>> for prediction in predictor.stream(["*.jpg", "photos/"]):  # doctest: +SKIP
    ...     print(prediction.source, prediction.names)
    >>> predictor.save_video("street.mp4", "found.mp4")  # doctest: +SKIP
    """

    #: what `__call__` and `stream` give
    prediction_type = Prediction

    def __init__(self, detector, config, *, batch_size=1, tta_sizes=()):
        self.detector = detector
        self.tta_sizes = tuple(tta_sizes)
        self.config = load_config(config)
        if batch_size < 1:
            raise ValueError(
                f"`batch_size` must be >= 1. Received: batch_size={batch_size}"
            )
        self.batch_size = batch_size
        num_classes = detector.num_classes
        for name in ("class_names", "category_ids"):
            values = getattr(self.config, name)
            if values and len(values) != num_classes:
                raise ValueError(
                    f"`config.{name}` must be {num_classes} values, one per class of "
                    f"the detector, or none. Received: {name}={values}"
                )
        self.class_names = self.config.class_names or tuple(
            f"class {label}" for label in range(num_classes)
        )
        self.category_ids = self.config.category_ids or tuple(range(1, num_classes + 1))

    @classmethod
    def from_checkpoint(cls, run_dir, *, config=None, batch_size=1, tta_sizes=()):
        """Builds the detector of a training run and loads its weights.

        Args:
            run_dir: the run directory (its best weights by validation AP are taken,
                else the last), or a `.weights.h5` file.
            config: `Config`, name or path, for weights without a `config.json` beside.
            batch_size, tta_sizes: as above.

        Raises:
            ValueError: if there is no such run, or its weights do not fit its config.
        """
        config, weights = find_checkpoint(run_dir, config)
        detector = load_detector(config, weights)
        return cls(detector, config, batch_size=batch_size, tta_sizes=tta_sizes)

    def __call__(self, source, *, score_threshold=None, progress=False):
        """Detects objects in one image or in many.

        Args:
            source: path of an image, of a video (its frames), of a folder (its images,
                not hidden ones, its videos or what is in folders in it) or a glob
                (`"**"` goes into folders; `"*.mp4"` gives videos); an http, https or
                file URL of an image; a PIL image; a uint8 array `[h, w, 3]` RGB,
                `[h, w]`, `[h, w, 1]`, `[h, w, 4]` (alpha is dropped) or
                `[B, h, w, 3]`; or a list of these.
            score_threshold: float, detections with this score or less are left out;
                None takes the detector's own (0.05), as evaluation does.
            progress: bool, whether a line on stderr says how far it is.

        Returns:
            A `Prediction` for one path, URL or image; else a list of them, files of a
            folder in the order of their names. The frames of a video are a list of as
            many, without their pixels, which are decoded again for `draw`: about 1 kB
            each. `stream` and `save_video` do with one batch in memory.

        Raises:
            ValueError: for a source that does not exist, holds no image, or cannot be
                read as an image or video; it is named.
            ImportError: for a video without PyAV, the extra `video`.
        """
        images, is_one = expand_source(source)
        found = self.stream(images, score_threshold=score_threshold)
        found = _counted(found, images) if progress else found
        predictions = [
            prediction if prediction.frame is None else _without_pixels(prediction)
            for prediction in found
        ]
        predictions.sort(key=lambda prediction: prediction.index)
        return predictions[0] if is_one else predictions

    def stream(self, source, *, score_threshold=None, skipped=None):
        """Yields one `Prediction` after the other, for more images than fit in memory.

        They come as batches fill up; `index` is the place among all images and frames.
        The frames of a video come in order, with their pixels.

        Args:
            source: as above.
            score_threshold: as above.
            skipped: list that `(name, reason)` of unreadable images are appended to;
                None makes them errors.
        """
        waiting = collections.defaultdict(list)
        for pixels, origin in self._read(expand_source(source)[0], skipped):
            prepared = self._prepare_views(pixels)
            origin["height"], origin["width"] = pixels.shape[:2]
            batch = waiting[tuple(view["images"].shape for view in prepared)]
            batch.append((origin, prepared))
            if len(batch) == self.batch_size:
                yield from self._detect(batch, score_threshold)
                batch.clear()
        for batch in waiting.values():
            if batch:
                yield from self._detect(batch, score_threshold)

    def save_video(self, source, path, *, score_threshold=None, progress=True, **style):
        """Writes a video with its detections drawn: its size, times and rate, no sound.

        One batch of frames is in memory at a time, however long the video is.

        Args:
            source: path of a video.
            path: of the file to write, ending in `.mp4` (H.264).
            score_threshold: detections with this score or less are neither drawn nor
                returned. None draws those above 0.3, and returns all.
            progress: bool, whether a line on stderr says how far it is.
            **style: further arguments of `visualization.draw_detections`.

        Returns:
            What calling the predictor on the video returns.

        Raises:
            ValueError: if the video cannot be read to its end, nothing is written then;
                or if `path` does not end in `.mp4`, or is the video itself.
            ImportError: without PyAV, the extra `video`.
        """
        if not video.is_video(source):
            raise ValueError(
                "`source` must be a video, ending in one of "
                f"{', '.join(video.VIDEO_SUFFIXES)}. Received: source={source!r}"
            )
        expand_source(source)  # raises for what is no file
        _check_is_another(path, source)
        found = self.stream(source, score_threshold=score_threshold)
        found = _counted(found, [source]) if progress else found
        predictions = []
        with video.VideoWriter(path, video.inspect_video(source)) as writer:
            for prediction in found:
                # Small frames are not enlarged: a player does that.
                drawn = prediction.draw(**{"min_side": 1, **style})
                writer.add(drawn, prediction.time)
                predictions.append(_without_pixels(prediction))
        return predictions

    def _read(self, images, skipped):
        """Yields (pixels, fields of the `Prediction` that say where they are from)."""
        index = -1
        for place, image in enumerate(images):
            name = image if isinstance(image, str) else None
            try:
                if video.is_video(image):
                    frames = enumerate(video.read_frames(image))
                    for frame, (seconds, pixels) in frames:
                        index += 1
                        yield (
                            pixels,
                            {
                                "index": index,
                                "source": name,
                                "pixels": pixels,
                                "frame": frame,
                                "time": seconds,
                            },
                        )
                    continue
                index += 1
                pixels = self._load(image)
            except ValueError as error:
                if skipped is None:
                    raise
                skipped.append((name or f"image {place}", str(error)))
                continue
            # A file can be read again, so many results need little memory.
            is_file = name is not None and not _is_url(name)
            kept = None if is_file else pixels
            yield pixels, {"index": index, "source": name, "pixels": kept}

    def read_file(self, path, name=None):
        """Reads an image file, see `load_file`."""
        return load_file(path, name)

    def _load(self, image):
        """One image of `expand_source` as uint8 `[h, w, 3]` RGB."""
        if isinstance(image, str):
            if not _is_url(image):
                return self.read_file(image)
            with tempfile.TemporaryDirectory() as folder:
                path = os.path.join(folder, "image")
                _download(image, path)
                return self.read_file(path, image)
        if isinstance(image, Image.Image):
            return _pixels_of_pil(image)
        return _pixels_of_array(image)

    def prepare(self, pixels):
        """One image as a network input, as the evaluation pipeline makes it.

        Args:
            pixels: uint8 `[h, w, 3]` RGB.

        Returns:
            dict of float32 arrays: `images` `[H, W, 3]` (normalised, padded right and
            bottom to a multiple of 32), `image_size` `[2]`, `scale` `[2]`, see
            `data.example`.
        """
        import tensorflow as tf

        from vfnet_tf.data import transforms
        from vfnet_tf.data.pipeline import choose_canvas_shapes

        data = self.config.data
        ((height, width),) = choose_canvas_shapes(
            [pixels.shape[:2]], data.image_size, 1, data.keep_ratio
        )
        if data.keep_ratio:
            resize = transforms.resize_keep_ratio(*data.image_size)
        else:
            resize = transforms.resize_exact(*data.image_size)
        # On the CPU as tf.data does it: another device may round a pixel differently.
        with tf.device("CPU:0"):
            example = resize(
                {"image": tf.constant(pixels), "boxes": tf.zeros([0, 4], "float32")}
            )
            example = transforms.normalize(data.normalization)(example)
            example = transforms.pad_to(height, width)(example)
        return {
            "images": example["image"].numpy(),
            "image_size": example["image_size"].numpy(),
            "scale": example["scale"].numpy(),
        }

    def _prepare_views(self, pixels):
        """List of the network inputs of one image: one, or those of `tta_sizes`."""
        if not self.tta_sizes:
            return [self.prepare(pixels)]
        import tensorflow as tf

        from vfnet_tf.data.views import make_views

        data = self.config.data
        with tf.device("CPU:0"):
            views = make_views(
                tf.constant(pixels),
                self.tta_sizes,
                normalization=data.normalization,
                keep_ratio=data.keep_ratio,
            )
        return [{name: view[name].numpy() for name in view} for view in views]

    def _detect(self, batch, score_threshold):
        """Detections of a list of (origin, prepared views) on the same canvases."""
        views = [
            {name: np.stack([view[name] for view in same]) for name in same[0]}
            for same in zip(*(prepared for _, prepared in batch), strict=True)
        ]
        overrides = {}
        if score_threshold is not None and (
            score_threshold < self.detector.score_threshold
        ):
            overrides["score_threshold"] = score_threshold
        if self.tta_sizes:
            found = self.detector.detect_augmented(views, **overrides)
        else:
            (view,) = views
            found = self.detector.detect(
                view["images"], view["image_size"], view["scale"], **overrides
            )
        found = {name: _to_numpy(value) for name, value in found.items()}
        for row, (origin, _) in enumerate(batch):
            keep = np.arange(found["scores"].shape[1]) < found["num_detections"][row]
            if score_threshold is not None:
                # Weak boxes never suppress strong ones: dropped here or before NMS,
                # the strong ones stay the same.
                keep &= found["scores"][row] > score_threshold
            labels = found["labels"][row][keep]
            yield self.prediction_type(
                boxes=found["boxes"][row][keep],
                scores=found["scores"][row][keep],
                labels=labels,
                names=[self.class_names[label] for label in labels],
                class_names=self.class_names,
                category_ids=self.category_ids,
                draw_threshold=(
                    DRAW_THRESHOLD if score_threshold is None else score_threshold
                ),
                **origin,
            )


def _without_pixels(prediction):
    return dataclasses.replace(prediction, pixels=None)


def _counted(predictions, images):
    """Hands predictions on, and says on stderr how many of all there were."""
    counts = [
        video.inspect_video(image).num_frames if video.is_video(image) else 1
        for image in images
    ]
    total = None if None in counts else sum(counts)
    unit = "frames" if any(map(video.is_video, images)) else "images"
    progress = Progress(total, unit)
    for prediction in predictions:
        progress.add()
        yield prediction
    progress.close()


def _check_is_another(path, source):
    if os.path.realpath(path) == os.path.realpath(source):
        raise ValueError(
            "`path` must not be the image or video itself, which would be lost. "
            f"Received: path={path}"
        )


def find_checkpoint(checkpoint, config=None):
    """Finds the weights and the config of a training run.

    Args:
        checkpoint: a run directory, or a `.weights.h5` file.
        config: `Config`, name or path; None takes the `config.json` beside the weights.

    Returns:
        (`Config`, path of the weights).

    Raises:
        ValueError: if one of them is not there; what was looked for is said.
    """
    path = pathlib.Path(checkpoint).expanduser()
    run_dir = path
    if path.is_dir():
        found = [path / name for name in _WEIGHTS if (path / name).is_file()]
        if not found:
            raise ValueError(
                f"A run directory must hold {' or '.join(_WEIGHTS)}. "
                f"Received: checkpoint={path}"
            )
        weights = found[0]
    elif path.is_file() and path.name.endswith(".weights.h5"):
        weights, run_dir = path, path.parent
    else:
        problem = "another file" if path.is_file() else "which does not exist"
        raise ValueError(
            "`checkpoint` must be a run directory or a .weights.h5 file. "
            f"Received: checkpoint={path}, {problem}"
        )
    if config is None:
        config = run_dir / "config.json"
        if not config.is_file():
            raise ValueError(
                "Weights need their config: a config.json beside them, or `config`. "
                f"Received: checkpoint={path} without {config}"
            )
    return load_config(config), weights


def load_detector(config, weights):
    """Builds a detector and loads weights, naming the file if that fails.

    Args:
        config: a `Config`.
        weights: path of a `.weights.h5` file.

    Raises:
        ValueError: if the file is damaged or is of another detector.
    """
    from vfnet_tf.builder import build_detector

    detector = build_detector(config)
    try:
        detector.load_weights(weights)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            "The weights must be of the detector that the config describes. Received: "
            f"{weights} for the config {config.name!r}: {error}"
        ) from error
    return detector


def expand_source(source, passed_over=None):
    """Lists the images that a source stands for; see `Predictor.__call__`.

    Args:
        source: as there.
        passed_over: list that `(path, reason)` are appended to, of files in folders and
            globs that look like images and are not taken.

    Returns:
        (list of paths and URLs as str, PIL images and arrays; whether the source is
        one image and not a collection or a video).

    Raises:
        ValueError: for a path that does not exist, a folder or glob without an image,
            a URL of another scheme or of a video, or an object of another kind.
    """
    if isinstance(source, list | tuple):
        images = [
            image for part in source for image in expand_source(part, passed_over)[0]
        ]
        return images, False
    if isinstance(source, str | os.PathLike):
        left_out = [] if passed_over is None else passed_over
        return _expand_path(os.fspath(source), left_out)
    if isinstance(source, Image.Image):
        return [source], True
    if hasattr(source, "__array__"):
        array = np.asarray(source)
        return (list(array), False) if array.ndim == 4 else ([array], True)
    raise ValueError(
        "`source` must be a path, a URL, a PIL image, an array or a list of these. "
        f"Received: source of type {type(source).__name__}"
    )


def _expand_path(text, passed_over):
    if _SCHEME.match(text):
        if not _is_url(text):
            raise ValueError(
                f"A URL must start with {', '.join(_URL_SCHEMES)}. Received: {text}"
            )
        if video.is_video(urllib.parse.urlsplit(text).path):
            raise ValueError(
                f"A URL must be of an image; download a video first. Received: {text}"
            )
        return [text], True
    path = pathlib.Path(text).expanduser()
    if path.is_file():
        return [str(path)], not video.is_video(path)
    suffixes = IMAGE_SUFFIXES
    if path.is_dir():
        candidates, what = path.iterdir(), "A folder"
    elif os.path.lexists(path):
        raise ValueError(
            "`source` must be a file or a folder. "
            f"Received: source={text}, which {regular_file_error(path)}"
        )
    elif glob.has_magic(text):
        candidates, what = _expand_glob(str(path), passed_over), "A glob"
        if video.is_video(path):  # asked for by their ending
            suffixes = video.VIDEO_SUFFIXES
    else:
        raise ValueError(f"`source` must exist. Received: source={text}")
    images, first = [], len(passed_over)
    for candidate in sorted(map(pathlib.Path, candidates)):
        suffix = candidate.suffix.lower()
        reason = ""
        if suffix in (OTHER_IMAGE_SUFFIXES | set(video.VIDEO_SUFFIXES)) - set(suffixes):
            reason = f"is not looked for by its ending {suffix}, but can be named"
        elif candidate.is_dir():
            if what != "A folder":
                continue
            reason = "is a folder in it: name it, or search all by a glob with **"
            if is_hidden(candidate.name):
                reason = "is hidden or of the system"
        elif suffix not in suffixes:
            continue
        elif is_hidden(candidate.name):
            reason = "is hidden or of the system"
        else:
            reason = regular_file_error(candidate)
        if reason:
            passed_over.append((str(candidate), reason))
        else:
            images.append(str(candidate))
    if not images:
        others = "; ".join(f"{name} {reason}" for name, reason in passed_over[first:])
        raise ValueError(
            f"{what} must hold images ({', '.join(sorted(IMAGE_SUFFIXES))}); videos are "
            "given by their path or by a glob of their ending. "
            f"Received: source={text}{f', where {others}' if others else ''}"
        )
    return images, False


def _expand_glob(pattern, passed_over):
    """The paths that a pattern matches; `**` is any number of folders, also none."""
    parts = pathlib.PurePath(pattern).parts
    if "**" not in parts:
        return glob.iglob(pattern)
    # What `glob` does with `**` takes years where two links lead to where they lie.
    plain = next(n for n, part in enumerate(parts) if glob.has_magic(part))
    folder = os.path.join(*parts[:plain]) if plain else "."
    if not os.path.isdir(folder):
        return []
    left_out = []
    paths = list_tree(folder, left_out)
    passed_over += [entry for entry in left_out if os.path.isdir(entry[0])]
    return [
        os.path.normpath(path)
        for path in paths
        if _matches(
            pathlib.PurePath(os.path.relpath(path, folder)).parts, parts[plain:]
        )
    ]


def _matches(parts, pattern):
    """Whether the parts of a path match those of a glob."""
    if not pattern or not parts:
        return not parts and all(part == "**" for part in pattern)
    if pattern[0] == "**":
        return _matches(parts, pattern[1:]) or _matches(parts[1:], pattern)
    return fnmatch.fnmatch(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _is_url(text):
    match = _SCHEME.match(text)
    return match is not None and match.group(1).lower() in _URL_SCHEMES


def _to_numpy(value):
    """A tensor of any backend as an array; Keras is not imported for an array."""
    if isinstance(value, np.ndarray):
        return value
    import keras

    return keras.ops.convert_to_numpy(value)


def load_file(path, name=None):
    """Reads an image file as the pipeline does, EXIF orientation applied.

    Args:
        path: str.
        name: str, what errors call it, e.g. the URL it came from.

    Returns:
        uint8 `[h, w, 3]` RGB.

    Raises:
        ValueError: naming the file and the reason, if it is not a readable image.
    """
    import tensorflow as tf

    from vfnet_tf.data.images.decode import load_image

    name = path if name is None else name
    header = inspect_image(path, full=False)
    if header.error:
        raise ValueError(f"An image must be readable. Received: {name} {header.error}")
    try:
        with tf.device("CPU:0"):
            orientation = tf.constant(header.orientation)
            # As bytes, as the name may be no valid UTF-8.
            name_on_disk = os.fsencode(path)
            return load_image(name_on_disk, orientation, header.needs_pil).numpy()
    except tf.errors.OpError as error:
        raise ValueError(
            f"An image must be readable. Received: {name} cannot be decoded: "
            f"{error.message}"
        ) from error


def _download(url, path):
    """Fetches a URL into a file, at most `MAX_DOWNLOAD` bytes of it."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme.lower() == "file":
        named = urllib.request.url2pathname(parts.path)
        error = regular_file_error(named) if os.path.exists(named) else ""
        if error:
            raise ValueError(f"A URL must be of a file. Received: {url}, which {error}")
    request = urllib.request.Request(url, headers={"User-Agent": "vfnet_tf"})
    try:
        with urllib.request.urlopen(request, timeout=DOWNLOAD_TIMEOUT) as answer:
            contents = answer.read(MAX_DOWNLOAD + 1)
    except urllib.error.HTTPError as error:
        reason = f"the server answers {error.code} {error.reason}"
        raise ValueError(f"A URL must exist. Received: {url}, {reason}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise ValueError(
            f"A URL must be reachable. Received: {url}, {reason}"
        ) from error
    if len(contents) > MAX_DOWNLOAD:
        raise ValueError(
            f"A URL must give at most {MAX_DOWNLOAD} bytes. Received: {url} with more"
        )
    pathlib.Path(path).write_bytes(contents)


def _pixels_of_pil(image):
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(
            f"An image must have at most {MAX_PIXELS} pixels. Received: {image.size}"
        )
    try:
        return pixels_of(image)
    except (ImageError, OSError) as error:  # PIL reads an open file's pixels only now.
        raise ValueError(
            f"An image must be readable. Received: {image!r} {error}"
        ) from error


def _pixels_of_array(array):
    array = np.asarray(array)
    shape = array.shape
    if array.dtype != np.uint8:
        raise ValueError(
            "An image array must be uint8, RGB in 0..255. "
            f"Received: dtype={array.dtype}, shape={shape}"
        )
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[-1] not in (1, 3, 4) or 0 in shape:
        raise ValueError(
            "An image array must be [h, w, 3], [h, w, 4], [h, w, 1] or [h, w]. "
            f"Received: shape={shape}"
        )
    if array.shape[-1] == 1:
        return np.repeat(array, 3, axis=-1)
    return np.ascontiguousarray(array[..., :3])
