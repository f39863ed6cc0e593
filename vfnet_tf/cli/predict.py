"""`vfnet predict`: annotated images and videos, one json of detections."""

import collections
import dataclasses
import json
import os
import pathlib
import urllib.parse

import tyro

from vfnet_tf.files import write_file


@dataclasses.dataclass(frozen=True)
class PredictOptions:
    """Detect objects in images and videos.

    Writes each image with its detections drawn to OUT, each video as an mp4 without
    sound, and OUT/detections.json: a COCO file with the lists images, categories and
    annotations, boxes [x, y, width, height] in pixels of the original image, each with
    its score. A frame of a video is an image with the fields frame, from 0, and time,
    in seconds. Exit status: 0, 1 if a picture could not be drawn, 2 if an image could
    not be read; without --skip-bad-images that is mostly known before the first is.
    """

    source: tyro.conf.Positional[tuple[str, ...]]
    """image files, folders, globs ('slides/**/*.png') or URLs; video files"""
    checkpoint: pathlib.Path | None = None
    """run directory (its best weights), .weights.h5, .pth of the official code, or the
    name of a published model, which is downloaded once; by default
    vfnet_r50_fpn_mstrain_2x_coco"""
    model: pathlib.Path | None = None
    """a .onnx or .tflite file of `vfnet export`, in place of a checkpoint: with ONNX
    neither TensorFlow nor Keras is loaded"""
    out: pathlib.Path = pathlib.Path("predictions")
    """folder for pictures and detections.json"""
    score_threshold: float = 0.3
    """detections with this score or less are left out of pictures and json"""
    config: str | None = None
    """name or file of a config, for weights without a config.json beside"""
    batch_size: int = 1
    """images at a time; more pays on GPUs"""
    image_size: tuple[int, int] | None = None
    """short and long side in pixels, as in `vfnet evaluate`"""
    tta: bool = False
    """test-time augmentation, as in `vfnet evaluate`"""
    tta_sizes: tuple[tuple[int, int], ...] = ()
    """--tta at these sizes, pairs of short and long side in pixels"""
    pictures: bool = True
    """draw pictures and videos; --no-pictures writes detections.json only"""
    skip_bad_images: bool = False
    """go on without unreadable images and videos, and pictures that cannot be drawn, and
    list them, as if all were well"""


OPTIONS = PredictOptions


def run(options):
    """Predicts as `options` say; returns the exit status."""
    from vfnet_tf.inference.sources import expand_source
    from vfnet_tf.inference.video import is_video
    from vfnet_tf.progress import Progress

    if not options.source:
        raise ValueError("Give at least one file, folder, glob or URL. Received: none")
    if None not in (options.checkpoint, options.model):
        raise ValueError(
            "Give either --checkpoint or --model. Received: "
            f"--checkpoint {options.checkpoint} --model {options.model}"
        )
    if not 0 <= options.score_threshold < 1:
        raise ValueError(
            "--score-threshold must be in [0, 1). "
            f"Received: --score-threshold {options.score_threshold}"
        )
    # Before the detector is built, so that a wrong path is told at once.
    passed_over = []
    images, _ = expand_source(list(options.source), passed_over)
    images = list(dict.fromkeys(images))
    if passed_over:
        print(f"{len(passed_over)} files passed over:{_listed(passed_over)}")
    bad = check_files(images)
    if bad and not options.skip_bad_images:
        raise ValueError(
            "All images must be readable; leave the bad ones out, or go on without "
            "them by --skip-bad-images. Received: "
            f"{len(bad)} bad of {len(images)} images:" + _listed(bad)
        )
    bad_names = {name for name, _ in bad}
    images = [image for image in images if image not in bad_names]
    pictures = picture_paths(images, options.out) if options.pictures else {}
    make_predictor = _from_checkpoint if options.model is None else _from_model
    predictor = make_predictor(options)
    videos = [image for image in images if is_video(image)]
    images = [image for image in images if not is_video(image)]
    print(f"images     {len(images)}", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    # What is found out late must not cost what was predicted.
    skipped, undrawn = [], []
    counts = collections.Counter()
    entries = []
    if images:
        progress = Progress(len(images))
        for prediction in predictor.stream(
            images, score_threshold=options.score_threshold, skipped=skipped
        ):
            counts.update(prediction.names)
            picture = pictures.get(prediction.source)
            if picture is not None and not _draw(prediction, picture, undrawn):
                picture = None
            entries.append(_entry(prediction, picture))
            progress.add()
        progress.close()
    place = len(images)
    for video in videos:
        print(f"video      {video}", flush=True)
        try:
            frames = _predict_video(predictor, video, pictures.get(video), options)
        except ValueError as error:
            skipped.append((video, str(error)))
            continue
        for prediction in frames:
            counts.update(prediction.names)
            entries.append(_entry(prediction, pictures.get(video), place))
        place += len(frames)
    path = options.out / "detections.json"
    write_detections(path, entries, predictor.class_names, predictor.category_ids)

    if options.skip_bad_images:
        bad += skipped
    if bad:
        print(f"{len(bad)} bad images skipped:{_listed(bad)}")
    if undrawn:
        print(f"{len(undrawn)} pictures could not be drawn:{_listed(undrawn)}")
    found = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    print(
        f"found      {counts.total()} objects with a score above "
        f"{options.score_threshold:g}" + (f": {found}" if found else "")
    )
    if options.pictures:
        print(f"pictures   {options.out}")
    print(f"detections {path}")
    if skipped and not options.skip_bad_images:
        raise ValueError(
            "All images must be readable; leave the bad ones out, or allow them by "
            f"--skip-bad-images. {path} has the others. Received: "
            f"{len(skipped)} bad:{_listed(skipped)}"
        )
    return 1 if undrawn and not options.skip_bad_images else 0


def _draw(prediction, picture, undrawn):
    """Writes a picture; where that fails, `(source, reason)` goes to `undrawn`.

    Returns:
        Whether it was written.
    """
    try:
        prediction.save(picture)
    except Exception as error:  # Encoders and full disks raise whatever they like.
        undrawn.append((prediction.source, f"{type(error).__name__}: {error}"))
        return False
    return True


def _predict_video(predictor, video, picture, options):
    """Predictions of all frames; the annotated video too if `picture` is its path."""
    settings = {"score_threshold": options.score_threshold, "progress": True}
    if picture is None:
        return predictor(video, **settings)
    return predictor.save_video(video, picture, **settings)


def _from_checkpoint(options):
    """The `Predictor` of a checkpoint, as `options` say."""
    from vfnet_tf.checkpoints.published import DEFAULT_PRESET
    from vfnet_tf.inference.dataset import config_at_size, describe_views, view_sizes
    from vfnet_tf.inference.load import load_checkpoint
    from vfnet_tf.inference.predictor import Predictor
    from vfnet_tf.presets import published_directory

    # Without an option the published model is meant, not a folder of its name.
    checkpoint = options.checkpoint or published_directory(DEFAULT_PRESET)
    detector, config, weights = load_checkpoint(checkpoint, options.config)
    print(f"checkpoint {weights}")
    tta = "official" if options.tta and not options.tta_sizes else options.tta_sizes
    config = config_at_size(config, options.image_size, bool(tta))
    sizes = view_sizes(config, tta)
    if sizes:
        print(f"views      {describe_views(sizes)}", flush=True)
    return Predictor(detector, config, batch_size=options.batch_size, tta_sizes=sizes)


def _from_model(options):
    """The `Predictor` of an exported file."""
    print(f"model      {options.model}")
    if options.model.suffix == ".tflite":
        from vfnet_tf.cli.evaluation_options import check_model_options
        from vfnet_tf.inference.litert import LiteRTPredictor

        check_model_options(options)
        return LiteRTPredictor(options.model, num_threads=os.cpu_count() or 1)

    from vfnet_tf.inference.onnx import OnnxPredictor

    given = [
        f"--{name.replace('_', '-')}"
        for name in ("config", "image_size", "tta", "tta_sizes")
        if getattr(options, name)
    ]
    if given:
        raise ValueError(
            "--model has the sizes of its export, and no views. Received: "
            + ", ".join(given)
        )
    return OnnxPredictor(options.model, batch_size=options.batch_size)


def check_files(images):
    """Looks at the heads of files before the first is predicted.

    Args:
        images: list of paths and URLs; URLs are not fetched yet.

    Returns:
        list of (path, reason) of those that cannot be read.
    """
    from vfnet_tf.data.images.inspect import inspect_image
    from vfnet_tf.inference.video import inspect_video, is_video

    bad = []
    for image in images:
        if is_video(image):
            try:
                inspect_video(image)
            except ValueError as error:
                bad.append((image, str(error)))
        elif "://" not in image:
            header = inspect_image(image, full=False)
            if header.error:
                bad.append((image, header.error))
    return bad


def picture_paths(images, out):
    """Chooses a file for the picture of each image, none twice and none an input.

    Args:
        images: list of paths and URLs.
        out: `pathlib.Path` of the folder.

    Returns:
        dict image -> `pathlib.Path`; JPEG for JPEG images, mp4 for videos, else PNG.

    Raises:
        ValueError: if a picture would replace one of the images.
    """
    from vfnet_tf.inference.video import is_video

    inputs = {os.path.realpath(image) for image in images if "://" not in image}
    paths, taken = {}, set()
    for image in images:
        name = image
        if "://" in image:
            name = urllib.parse.unquote(urllib.parse.urlsplit(image).path)
        name = pathlib.PurePath(name)
        suffix = ".jpg" if name.suffix.lower() in (".jpg", ".jpeg") else ".png"
        suffix = ".mp4" if is_video(image) else suffix
        path, number = out / f"{name.stem or 'image'}{suffix}", 1
        while path in taken:
            number += 1
            path = out / f"{name.stem or 'image'}_{number}{suffix}"
        if os.path.realpath(path) in inputs:
            raise ValueError(
                "--out must be another folder than that of the images, or pictures "
                f"would replace them. Received: --out {out} for {image}"
            )
        taken.add(path)
        paths[image] = path
    return paths


def _entry(prediction, picture, first=0):
    """One image or frame of detections.json, with its place among all."""
    place = first + prediction.index
    image = {
        "id": place + 1,
        "file_name": prediction.source,
        "height": prediction.height,
        "width": prediction.width,
    }
    if prediction.frame is not None:
        image |= {"frame": prediction.frame, "time": round(prediction.time, 6)}
    if picture is not None:
        image["picture"] = picture.name
    return place, image, prediction.to_coco(place + 1)


def write_detections(path, entries, class_names, category_ids):
    """Writes a COCO file of detections, whole or not at all.

    Args:
        path: `pathlib.Path`.
        entries: list of (place, image dict, its list in COCO's results format).
        class_names: K strings by label.
        category_ids: K ints by label.
    """
    entries = sorted(entries, key=lambda entry: entry[0])
    results = [result for _, _, found in entries for result in found]
    content = {
        "images": [image for _, image, _ in entries],
        "categories": [
            {"id": int(category_id), "name": name}
            for category_id, name in zip(category_ids, class_names, strict=True)
        ],
        "annotations": [
            {
                "id": number,
                **result,
                "area": round(result["bbox"][2] * result["bbox"][3], 3),
                "iscrowd": 0,
            }
            for number, result in enumerate(results, start=1)
        ],
    }
    write_file(path, json.dumps(content, indent=1))


def _listed(bad):
    from vfnet_tf.data.dataset import listed

    return listed([f"{name}: {reason}" for name, reason in bad])
