"""Detections for images from files, folders, globs, URLs, arrays and videos.

The functions of the evaluation pipeline read, resize, normalise and pad each image to the
smallest canvas that holds it, like the official code. So the detections in an image do
not depend on the other images.
"""

import collections
import os
import tempfile

import numpy as np
from PIL import Image

from vfnet_tf.checkpoints.published import DEFAULT_PRESET
from vfnet_tf.config import load_config
from vfnet_tf.inference import video
from vfnet_tf.inference.load import find_checkpoint, load_detector
from vfnet_tf.inference.prediction import (
    DRAW_THRESHOLD,
    Prediction,
    check_is_another,
    without_pixels,
)
from vfnet_tf.inference.sources import (
    download,
    expand_source,
    is_url,
    load_file,
    pixels_of_array,
    pixels_of_pil,
)
from vfnet_tf.progress import Progress


class Predictor:
    """Finds objects in images, given by path or as pixels, with a detector.

    Args:
        detector: a `DenseDetector`, e.g. a `VFNet`.
        config: its `Config`, or an argument of `load_config`. `data` says how images
            become network inputs; `class_names` and `category_ids` name the labels.
            Without them names are "class 0", "class 1", ... and ids count from 1.
        batch_size: int, images in a batch of the detector. More than 1 is faster on
            accelerators if many images share a size.
        tta_sizes: list of (short, long) pixels, or (height, width) if the config does
            not keep the ratio, for test-time augmentation: the detector sees each image
            at each size, plain and mirrored, and one NMS runs over all boxes. Empty for
            the config's size alone.

    Raises:
        ValueError: if the number of names or ids differs from that of the classes.

    >>> predictor = Predictor.from_checkpoint("runs/mine")
    >>> prediction = predictor("street.jpg", score_threshold=0.4)
    >>> picture = prediction.save("street_detected.png")
    >>> for prediction in predictor.stream(["*.jpg", "photos/"]):  # doctest: +SKIP
    ...     print(prediction.source, prediction.names)
    >>> predictor.save_video("street.mp4", "found.mp4")  # doctest: +SKIP
    """

    #: The class of what `__call__` and `stream` return.
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
            run_dir: the run directory, for its best weights by validation AP or else
                its last, or a `.weights.h5` file.
            config: `Config`, name or path, for weights without a `config.json` beside
                them.
            batch_size, tta_sizes: see `Predictor`.

        Raises:
            ValueError: if there is no such run, or its weights do not fit its config.
        """
        config, weights = find_checkpoint(run_dir, config)
        detector = load_detector(config, weights)
        return cls(detector, config, batch_size=batch_size, tta_sizes=tta_sizes)

    @classmethod
    def from_pretrained(cls, preset=None, *, batch_size=1, tta_sizes=()):
        """Builds the detector of a preset, such as a published model by its name.

        Args:
            preset: a run or preset directory, the name of a published model, or
                `hf://USER/REPOSITORY`; see `presets.preset_directory`. None takes
                `"vfnet_r50_fpn_mstrain_2x_coco"`.
            batch_size, tta_sizes: see `Predictor`.

        Raises:
            ValueError: if there is no such preset, or it cannot be downloaded now.

        >>> predictor = Predictor.from_pretrained()  # doctest: +SKIP
        >>> predictor("street.jpg").names  # doctest: +SKIP
        """
        if preset is None:
            from vfnet_tf.presets import published_directory

            preset = published_directory(DEFAULT_PRESET)
        return cls.from_checkpoint(preset, batch_size=batch_size, tta_sizes=tta_sizes)

    def __call__(self, source, *, score_threshold=None, progress=False):
        """Detects objects in one image or in many.

        Args:
            source: path of an image, of a video (for its frames) or of a folder (for
                its images, without hidden files, videos and inner folders); a glob
                (`"**"` matches folders; `"*.mp4"` matches videos); an http, https or
                file URL of an image; a PIL image; a uint8 array `[h, w, 3]` RGB,
                `[h, w]`, `[h, w, 1]`, `[h, w, 4]` (alpha is dropped) or
                `[B, h, w, 3]`; or a list of these.
            score_threshold: float, detections with this score or less are left out;
                None takes the detector's own (0.05), which is that of evaluation.
            progress: bool, whether to show the progress on stderr.

        Returns:
            A `Prediction` for one path, URL or image; else a list of them, the files of
            a folder in the order of their names. Predictions for the frames of a video
            take about 1 kB each: they hold no pixels, and `draw` decodes the frame
            again. `stream` and `save_video` hold one batch in memory.

        Raises:
            ValueError: for a source that does not exist, holds no image, or cannot be
                read as an image or video; the message names it.
            ImportError: for a video without PyAV, the extra `video`.
        """
        images, is_one = expand_source(source)
        found = self.stream(images, score_threshold=score_threshold)
        found = _counted(found, images) if progress else found
        predictions = [
            prediction if prediction.frame is None else without_pixels(prediction)
            for prediction in found
        ]
        predictions.sort(key=lambda prediction: prediction.index)
        return predictions[0] if is_one else predictions

    def stream(self, source, *, score_threshold=None, skipped=None):
        """Yields one `Prediction` after the other, for more images than fit in memory.

        The order is that in which batches become full; `index` is the place among all
        images and frames. Frames of a video come in order, with their pixels.

        Args:
            source, score_threshold: see `__call__`.
            skipped: list to which `(name, reason)` of unreadable images are appended;
                None raises a ValueError for them.
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
        """Writes a copy of a video with its detections drawn, without sound.

        One batch of frames is in memory at a time.

        Args:
            source: path of a video.
            path: of the file to write, ending in `.mp4` (H.264).
            score_threshold: detections with this score or less are neither drawn nor
                returned. None draws those above 0.3, and returns all.
            progress: bool, whether to show the progress on stderr.
            **style: further arguments of `drawing.draw_detections`.

        Returns:
            The list of predictions, see `__call__`.

        Raises:
            ValueError: if the video cannot be read to its end, in which case no file is
                written, or if `path` does not end in `.mp4` or is the video itself.
            ImportError: without PyAV, the extra `video`.
        """
        if not video.is_video(source):
            raise ValueError(
                "`source` must be a video, ending in one of "
                f"{', '.join(video.VIDEO_SUFFIXES)}. Received: source={source!r}"
            )
        expand_source(source)  # raises if there is no such file
        check_is_another(path, source)
        found = self.stream(source, score_threshold=score_threshold)
        found = _counted(found, [source]) if progress else found
        predictions = []
        with video.VideoWriter(path, video.inspect_video(source)) as writer:
            for prediction in found:
                # Small frames are not enlarged: a player does that.
                drawn = prediction.draw(**{"min_side": 1, **style})
                writer.add(drawn, prediction.time)
                predictions.append(without_pixels(prediction))
        return predictions

    def _read(self, images, skipped):
        """Yields (pixels, dict of the fields of `Prediction` on their source)."""
        index = -1
        for place, image in enumerate(images):
            name = image if isinstance(image, str) else None
            try:
                if video.is_video(image):
                    frames = enumerate(video.read_frames(image))
                    for frame, (seconds, pixels) in frames:
                        index += 1
                        origin = {"index": index, "source": name, "pixels": pixels}
                        yield pixels, {**origin, "frame": frame, "time": seconds}
                    continue
                index += 1
                pixels = self._load(image)
            except ValueError as error:
                if skipped is None:
                    raise
                skipped.append((name or f"image {place}", str(error)))
                continue
            # A file can be read again, so many results need little memory.
            is_file = name is not None and not is_url(name)
            kept = None if is_file else pixels
            yield pixels, {"index": index, "source": name, "pixels": kept}

    def read_file(self, path, name=None):
        """Reads an image file. See `sources.load_file`."""
        return load_file(path, name)

    def _load(self, image):
        """One image of `expand_source` as uint8 `[h, w, 3]` RGB."""
        if isinstance(image, str):
            if not is_url(image):
                return self.read_file(image)
            with tempfile.TemporaryDirectory() as folder:
                path = os.path.join(folder, "image")
                download(image, path)
                return self.read_file(path, image)
        if isinstance(image, Image.Image):
            return pixels_of_pil(image)
        return pixels_of_array(image)

    def prepare(self, pixels):
        """Makes a network input of one image, like the evaluation pipeline.

        Args:
            pixels: uint8 `[h, w, 3]` RGB.

        Returns:
            dict of float32 arrays: `images` `[H, W, 3]` (normalised, padded right and
            bottom to a multiple of 32), `image_size` `[2]`, `scale` `[2]`, see
            `data.example`.
        """
        import tensorflow as tf

        from vfnet_tf.data import transforms
        from vfnet_tf.data.canvases import check_image_size

        data = self.config.data
        size = check_image_size(data.image_size, data.keep_ratio)
        make_input = transforms.network_input(size, data.keep_ratio, data.normalization)
        # On the CPU, like tf.data: another device may round a pixel differently.
        with tf.device("CPU:0"):
            example = make_input(tf.constant(pixels))
            size = transforms.padded_size(tf.shape(example["image"])[:2])
            example = transforms.pad_to(*tf.unstack(size))(example)
        return {
            "images": example["image"].numpy(),
            "image_size": example["image_size"].numpy(),
            "scale": example["scale"].numpy(),
        }

    def _prepare_views(self, pixels):
        """List of the network inputs of one image, see `tta_sizes`."""
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
                # Weak boxes never suppress strong ones, so to drop them after NMS is
                # the same as to drop them before it.
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


def _counted(predictions, images):
    """Yields the predictions and shows the progress on stderr."""
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


def _to_numpy(value):
    """A tensor of any backend as an array, without importing Keras for an array."""
    if isinstance(value, np.ndarray):
        return value
    import keras

    return keras.ops.convert_to_numpy(value)
