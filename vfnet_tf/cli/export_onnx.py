"""`vfnet export --format onnx`: writes a detector as an ONNX file."""

import time


def run(options, folder):
    """Exports by `ExportOptions`, into `folder` by default; returns the exit status."""
    from vfnet_tf.export import targets
    from vfnet_tf.export.onnx import model as onnx_model
    from vfnet_tf.export.onnx import verification as onnx_verification
    from vfnet_tf.inference.load import load_checkpoint

    if options.precision != "float32":
        raise ValueError(
            f"--format onnx writes float32. Received: --precision {options.precision}"
        )
    out = options.out or folder / "model.onnx"
    targets.check_file(out, ".onnx", options.overwrite)
    detector, config, weights = load_checkpoint(options.run_dir, options.config)
    print(f"weights    {weights}", flush=True)
    start = time.perf_counter()
    report = onnx_model.export_onnx(
        detector,
        out,
        config=config,
        nms_in_graph=options.nms,
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
    if options.verify:
        report = onnx_verification.verify_onnx(out, detector, options.verify)
        print(
            f"verified   {report['num_detections']} detections in {len(options.verify)} "
            "images, read, resized and detected without TensorFlow: boxes differ by "
            f"{report['box_difference']:.2g} pixels at most, scores by "
            f"{report['score_difference']:.2g}"
        )
    print(f"\n{usage(out)}")
    return 0


def usage(path):
    """Text with the calls of the file."""
    return (
        "Without TensorFlow (pip install 'vfnet_tf[onnx]'):\n"
        f"    vfnet predict street.jpg --model {path}\n"
        "or from Python:\n"
        "    from vfnet_tf.inference.onnx import OnnxPredictor\n"
        f'    print(OnnxPredictor("{path}")("street.jpg").boxes)'
    )
