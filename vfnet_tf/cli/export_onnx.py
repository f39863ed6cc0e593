"""`vfnet export --format onnx`: writes a detector as an ONNX file."""

import time


def run(options, folder):
    """Exports by `ExportOptions`, into `folder` by default; returns the exit status."""
    from vfnet_tf.export import targets
    from vfnet_tf.export.onnx import calibration
    from vfnet_tf.export.onnx import model as onnx_model
    from vfnet_tf.export.onnx import verification as onnx_verification
    from vfnet_tf.inference.load import load_checkpoint

    if options.precision != "float32":
        raise ValueError(
            "--format onnx takes float32 and has --quantize in place of --precision. "
            f"Received: --precision {options.precision}"
        )
    out = options.out or folder / "model.onnx"
    targets.check_file(out, ".onnx", options.overwrite)
    images = ()
    if options.quantize == "int8":
        images = calibration.find_images(options.data)
    detector, config, weights = load_checkpoint(options.run_dir, options.config)
    print(f"weights    {weights}\nquantize   {options.quantize}", flush=True)
    if images:
        print(f"calibrate  {len(images)} images of {options.data}", flush=True)
    start = time.perf_counter()
    report = onnx_model.export_onnx(
        detector,
        out,
        config=config,
        nms_in_graph=options.nms,
        quantize=options.quantize,
        calibration=images,
        allow_slower=options.allow_slower,
        image_size=options.image_size,
        score_threshold=options.score_threshold,
        nms_iou_threshold=options.nms_iou_threshold,
        max_detections=options.max_detections,
        overwrite=options.overwrite,
    )
    seconds = time.perf_counter() - start
    sizes = ", ".join(f"{b} x {h} x {w}" for b, h, w in report["sizes"])
    print(
        f"ONNX       {out}, {out.stat().st_size / 1e6:.1f} MB, {report['num_nodes']} "
        f"nodes, written in {seconds:.0f} s\n"
        f"compared   with Keras on images of {sizes}: boxes differ by "
        f"{report['box_difference']:.2g} pixels at most, scores by "
        f"{report['score_difference']:.2g}",
        flush=True,
    )
    if options.quantize != "none":
        _tell_quantized(options.quantize, report)
    if options.verify:
        report = onnx_verification.verify_onnx(out, detector, options.verify)
        print(
            f"verified   {report['num_detections']} detections in {len(options.verify)} "
            f"images, read, resized and detected without TensorFlow: {_boxes(report)}, "
            f"scores differ by {report['score_difference']:.2g} at most"
        )
    print(f"\n{usage(out)}")
    return 0


def _boxes(report):
    """How near the boxes of `verify_onnx` are, as text."""
    if "lowest_iou" in report:
        return f"those above 0.3 overlap by {report['lowest_iou']:.2f} or more"
    return f"boxes differ by {report['box_difference']:.2g} pixels at most"


def _tell_quantized(quantize, report):
    """Prints the differences and the time of a quantised file."""
    from vfnet_tf.export.best_points import NUM_BEST, TOLERANCES

    found, (box_tolerance, score_tolerance) = report["quantized"], TOLERANCES[quantize]
    of_images = "calibration images" if quantize == "int8" else "generated images"
    print(
        f"quantised  {quantize}, at the {NUM_BEST} best points of {found['num_images']} "
        f"{of_images}: boxes differ by {found['box_difference']:.2g} of the longer side "
        f"at most ({box_tolerance:g} accepted), scores by "
        f"{found['score_difference']:.2g} ({score_tolerance:g})"
    )
    before, after = report["float32_seconds"], report["seconds"]
    print(
        f"time       {1000 * after:.0f} ms for an image of the config's size, "
        f"{1000 * before:.0f} ms with float32, on this machine's CPU",
        flush=True,
    )
    if after > before:
        print(
            f"note: {quantize} is slower than float32 here. "
            + (
                "Float16 pays on GPUs, and the file has half the size."
                if quantize == "float16"
                else "It was written for another machine, as --allow-slower says."
            ),
            flush=True,
        )


def usage(path):
    """Text with the calls of the file."""
    return (
        "Without TensorFlow (pip install 'vfnet_tf[onnx]'):\n"
        f"    vfnet predict street.jpg --model {path}\n"
        "or from Python:\n"
        "    from vfnet_tf.inference.onnx import OnnxPredictor\n"
        f'    print(OnnxPredictor("{path}")("street.jpg").boxes)'
    )
