"""`vfnet export`: writes a detector as a SavedModel, an ONNX or a LiteRT file."""

import contextlib
import dataclasses
import functools
import pathlib
import time
from typing import Annotated, Literal

import tyro

# option -> the one format that has it
_FORMAT_OF = {
    "nms": "onnx",
    "data": "onnx",
    "allow_slower": "onnx",
    "serving": "saved_model",
    "existing": "saved_model",
    "box_format": "saved_model",
}

# value of --quantize -> the formats that have it
_FORMATS_OF_QUANTIZE = {
    "float16": ("onnx", "litert"),
    "dynamic_int8": ("litert",),
    "int8": ("onnx",),
}


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """Write a detector as a SavedModel: from JPEG or PNG bytes to final detections.

    TensorFlow alone loads and runs it, and so does TensorFlow Serving. Or write the
    network, from normalised images to boxes and scores, as an ONNX file for other runtimes
    or as a LiteRT file for phones and small boards.
    """

    run_dir: Annotated[
        tyro.conf.Positional[pathlib.Path], tyro.conf.arg(metavar="RUN_DIR")
    ]
    """run directory (its best weights), .weights.h5, .pth of the official code, or the
    name of a published model"""
    out: pathlib.Path | None = None
    """directory of the SavedModel; by default RUN_DIR/saved_model, or for a name
    runs/published/NAME/saved_model. TensorFlow Serving
    wants a version number at the end, e.g. models/vfnet/1. For ONNX and LiteRT the file,
    RUN_DIR/model.onnx or RUN_DIR/model.tflite by default"""
    format: Literal["saved_model", "onnx", "litert"] = "saved_model"
    """onnx: any batch and size; litert: one image of one size"""
    nms: bool = False
    """of onnx: put the NMS into the graph, too"""
    quantize: Literal["none", "float16", "int8", "dynamic_int8"] = "none"
    """how the weights are stored: float16 of onnx (for GPUs) and litert; int8 of onnx,
    with --data; dynamic_int8 of litert"""
    data: str | None = None
    """with --quantize int8: folder or file of the dataset, as vfnet train takes it, whose
    training images set the steps of activations; or a folder of images like those to
    come"""
    allow_slower: bool = False
    """with --quantize int8: write the file even if it is slower than float32 on this
    machine, for another one"""
    config: str | None = None
    """name or file of a config, for weights without a config.json beside"""
    image_size: tuple[int, int] | None = None
    """short and long side in pixels that images are resized to fit into; by default as
    in training. For litert height and width of the input"""
    score_threshold: float | None = None
    """weaker detections are dropped; by default as in the config"""
    nms_iou_threshold: float | None = None
    """IoU above which the weaker of two boxes of a class is dropped; by default as in
    the config"""
    max_detections: int | None = None
    """detections per image at most; by default as in the config"""
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "float32"
    """of the exported graph; `vfnet evaluate` measures float32"""
    box_format: Literal["xyxy", "yxyx_normalized"] = "xyxy"
    """boxes in pixels, or as the TensorFlow Object Detection API has them: ymin, xmin,
    ymax, xmax in 0..1, classes from 1, all numbers as floats"""
    overwrite: bool = False
    """replace a SavedModel that is there already"""
    serving: Annotated[pathlib.Path | None, tyro.conf.arg(metavar="DIR")] = None
    """in place of --out: write DIR/MODEL_NAME/VERSION for TensorFlow Serving, with
    warm-up requests, models.config and batching_parameters.txt (extra `serving`)"""
    model_name: str = "vfnet"
    """with --serving: how clients call the model"""
    model_version: int | None = None
    """with --serving: number of the version; by default the one after the largest"""
    max_batch_size: int | None = None
    """with --serving: images of a batch at most; by default that of
    batching_parameters.txt, or 8"""
    verify: Annotated[
        tuple[pathlib.Path, ...], tyro.conf.arg(metavar="IMAGE [IMAGE ...]")
    ] = ()
    """JPEG or PNG files: run them through the SavedModel in a fresh process, alone and
    in batches, and through the detector; the detections must be equal"""
    existing: bool = False
    """write nothing: check that the SavedModel in --out was made of these weights and
    this config, then --verify it; its own precision and settings hold"""


OPTIONS = ExportOptions


def run(options):
    """Exports to the format of `options`; returns the exit status."""
    from vfnet_tf.checkpoints.published import closest_published
    from vfnet_tf.inference.load import output_folder

    _check_format(options)
    missing = [str(path) for path in options.verify if not path.is_file()]
    if missing:
        raise ValueError(f"--verify must name existing files. Received: {missing}")
    if options.serving is not None and (options.out is not None or options.overwrite):
        raise ValueError(
            "--serving writes a new version and must stand without --out and "
            f"--overwrite. Received: out={options.out}, overwrite={options.overwrite}"
        )
    for name in ("model_version", "max_batch_size"):
        if options.serving is None and getattr(options, name) is not None:
            option = name.replace("_", "-")
            raise ValueError(
                f"--{option} must stand beside --serving. "
                f"Received: {name}={getattr(options, name)}"
            )
    folder = output_folder(options.run_dir)
    if options.serving is None and options.out is None and folder is None:
        raise ValueError(
            "--out must say where to write, except for a run directory and the name of "
            "a published model (`vfnet configs` lists them). "
            f"Received: {options.run_dir}.{closest_published(options.run_dir)}"
        )
    if options.format == "litert":
        return _export_litert(options, folder)
    if options.format == "onnx":
        from vfnet_tf.cli import export_onnx

        return export_onnx.run(options, folder)
    out = options.serving or options.out or folder / "saved_model"
    import tensorflow as tf

    from vfnet_tf.export.saved_model import exporter as saved_model
    from vfnet_tf.export.serving import model_repository as tf_serving

    if options.existing:
        return _check_existing(out, options)
    # Mistakes are told before minutes of work. `--verify` needs no GPU.
    layout = (options.model_name, options.model_version, options.max_batch_size)
    if options.serving is None:
        saved_model.check_target(out, options.overwrite)
    else:
        tf_serving.check_layout(options.serving, *layout)
    with contextlib.suppress(RuntimeError):  # in use already
        tf.config.set_visible_devices([], "GPU")
    detector, config, weights = _load(options)
    print(f"weights    {weights}")
    print(f"precision  {options.precision}", flush=True)

    def verify(directory):
        if options.verify:
            _verify(directory, detector, options.verify)

    export = saved_model.export_saved_model
    if options.serving is not None:
        out = options.serving
        name, version, most = layout
        export = functools.partial(
            tf_serving.export_for_serving,
            model_name=name,
            version=version,
            max_batch_size=most,
            check=verify,  # before a server can see it
        )
    start = time.perf_counter()
    written = export(
        detector,
        out,
        config=config,
        image_size=options.image_size,
        score_threshold=options.score_threshold,
        nms_iou_threshold=options.nms_iou_threshold,
        max_detections=options.max_detections,
        box_format=options.box_format,
        overwrite=options.overwrite,
    )
    seconds = time.perf_counter() - start
    if options.serving is not None:
        out = written
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"SavedModel {out}, {size / 1e6:.1f} MB, written in {seconds:.0f} s\n")
    print(f"{saved_model.describe_signatures(out)}\n")
    if options.serving is None:
        print(usage(out), flush=True)
        verify(out)
    else:
        print(tf_serving.usage(options.serving, options.model_name))
    return 0


def _check_format(options):
    """Refuses options that belong to another format."""
    defaults = {field.name: field.default for field in dataclasses.fields(options)}
    for name, wanted in _FORMAT_OF.items():
        if options.format != wanted and getattr(options, name) != defaults[name]:
            raise ValueError(
                f"--{name.replace('_', '-')} is for --format {wanted}. "
                f"Received: --format {options.format}"
            )
    formats = _FORMATS_OF_QUANTIZE.get(options.quantize, (options.format,))
    if options.format not in formats:
        raise ValueError(
            f"--quantize {options.quantize} is for --format {' and '.join(formats)}. "
            f"Received: --format {options.format}"
        )
    is_int8 = options.quantize == "int8"
    if is_int8 != (options.data is not None) or (options.allow_slower and not is_int8):
        raise ValueError(
            "--quantize int8 needs --data, the images that it is calibrated on; --data "
            "and --allow-slower are for it alone. Received: --quantize "
            f"{options.quantize}, --data {options.data}, --allow-slower "
            f"{options.allow_slower}"
        )


def _check_existing(out, options):
    """Checks that a SavedModel was made of the run; writes nothing."""
    from vfnet_tf.export.saved_model import exporter as saved_model
    from vfnet_tf.export.saved_model import verification

    precision = saved_model.read_metadata(out)["precision"]
    options = dataclasses.replace(options, precision=precision)
    detector, config, weights = _load(options)
    verification.check_origin(out, detector, config)
    print(f"SavedModel {out}\nis made of {weights} and its config", flush=True)
    if options.verify:
        _verify(out, detector, options.verify)
    return 0


def _verify(out, detector, paths):
    """Compares the detections of the SavedModel and the detector."""
    from vfnet_tf.export.saved_model import verification

    report = verification.verify_saved_model(out, detector, paths)
    print(
        f"\nverified   {report['num_detections']} detections in "
        f"{report['num_batches']} batches of {len(paths)} images, in a fresh process "
        f"with TensorFlow alone: boxes differ by {report['box_difference']:.2g} at most, "
        f"scores by {report['score_difference']:.2g}"
    )


def _load(options):
    """`load_checkpoint` in the precision of the options."""
    import keras

    from vfnet_tf.inference.load import load_checkpoint

    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(options.precision)
    try:
        return load_checkpoint(options.run_dir, options.config)
    finally:
        keras.config.set_dtype_policy(policy)


def _export_litert(options, folder):
    """Runs `--format litert`."""
    from vfnet_tf.export import targets
    from vfnet_tf.export.litert import exporter as litert

    if options.precision != "float32":
        raise ValueError(
            "--format litert takes float32 and has --quantize in place of --precision. "
            f"Received: --precision {options.precision}"
        )
    out = options.out or folder / "model.tflite"
    targets.check_file(out, ".tflite", options.overwrite)
    detector, config, weights = _load(options)
    print(f"weights    {weights}\nquantize   {options.quantize}", flush=True)
    given = {
        name: getattr(options, name)
        for name in ("score_threshold", "nms_iou_threshold", "max_detections")
    }
    start = time.perf_counter()
    litert.export_litert(
        detector,
        out,
        image_size=options.image_size or litert.default_image_size(config),
        config=config,
        quantize=options.quantize,
        overwrite=options.overwrite,
        **{name: value for name, value in given.items() if value is not None},
    )
    seconds = time.perf_counter() - start
    size = out.stat().st_size
    print(f"LiteRT     {out}, {size / 1e6:.1f} MB, written in {seconds:.0f} s")
    print(f"metadata   {litert.metadata_path(out)}", flush=True)
    if options.verify:
        from vfnet_tf.export.litert.verification import verify_litert
        from vfnet_tf.inference.litert import LiteRTPredictor
        from vfnet_tf.inference.sources import load_file

        predictor = LiteRTPredictor(out)
        images = [
            predictor.prepare(load_file(str(path)))["images"] for path in options.verify
        ]
        report = verify_litert(out, detector, images)
        print(
            f"verified   {report['num_images']} images in ai-edge-litert: boxes differ "
            f"from Keras by {report['box_difference']:.2g} of the longer side at most, "
            f"scores by {report['score_difference']:.2g}"
        )
    return 0


def usage(directory):
    """Text with the calls of the SavedModel from Python and through TensorFlow Serving."""
    directory = pathlib.Path(directory).resolve()
    # Serving expects numbered versions in a folder with the model's name.
    base = directory.parent if directory.name.isdigit() else directory
    lines = [
        "From Python, with TensorFlow alone:",
        "    import tensorflow as tf",
        f'    model = tf.saved_model.load("{directory}")',
        '    images = tf.constant([open("street.jpg", "rb").read()])',
        '    found = model.signatures["serving_default"](image_bytes=images)',
        '    print(found["detection_boxes"][0, : found["num_detections"][0]])',
        "Through TensorFlow Serving, which decodes base64 itself:",
    ]
    if not directory.name.isdigit():
        lines.append(f"    # first move it to {base}/1: Serving asks for a version")
    lines += [
        f"    tensorflow_model_server --rest_api_port=8501 --model_name={base.name} \\",
        f"        --model_base_path={base}",
        """    (printf '{"instances": [{"b64": "'; base64 -w0 street.jpg; """
        """printf '"}]}') |""",
        f"        curl -d @- http://localhost:8501/v1/models/{base.name}:predict",
    ]
    return "\n".join(lines)
