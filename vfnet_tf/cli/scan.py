"""`vfnet scan DATA`: checks a dataset before training."""

import dataclasses
import json
import pathlib
import re
import textwrap

import tyro

#: Largest number of findings of a kind in the summary.
MAX_SHOWN = 3


@dataclasses.dataclass(frozen=True)
class ScanOptions:
    """Check every image and label of a dataset before training on it.

    Looks at files (decoding, sizes, orientation, formats), at duplicates within and
    across splits, at boxes and at classes. Prints a summary and writes OUT/scan.html, a
    page with histograms and the worst cases drawn, and OUT/scan.json. The data is never
    changed. Exit status: 0 safe, 1 not safe (an error was found; with --strict a warning
    is enough), 2 the command was wrong.
    """

    data: tyro.conf.Positional[str]
    """folder, file or tfds:NAME, as vfnet train takes it"""
    out: pathlib.Path | None = None
    """folder for scan.html and scan.json; runs/scan_DATA by default"""
    config: str = "vfnet_r50_fpn_1x_coco"
    """name or file of the config to train, for the size of its images"""
    image_size: tuple[int, int] | None = None
    """short and long side in pixels that training will fit images into, in place of the
    config's"""
    small_side: float = 8.0
    """boxes with a shorter side, in pixels at that size, are reported as small"""
    strict: bool = False
    """warnings make the exit status 1 as well"""
    tensorflow: bool = True
    """decode with TensorFlow, as training will, besides PIL; without it the scan is
    quicker"""
    threads: int | None = None
    """images looked at at a time, as many as there are cores by default"""


OPTIONS = ScanOptions


def run(options):
    """Scans all splits and writes the report; returns the exit status."""
    from vfnet_tf import config as configs
    from vfnet_tf.data.formats.readers import find_format, find_splits
    from vfnet_tf.data.scan.checks import scan_splits, unreadable
    from vfnet_tf.progress import Progress
    from vfnet_tf.reports.scan import scan_page

    config = configs.load_config(options.config)
    out = options.out or default_out(options.data)
    kind, _, _ = find_format(options.data)
    image_size = options.image_size or config.data.image_size
    settings = {"image_size": image_size, "small_side": options.small_side}
    try:
        splits = find_splits(options.data, Progress)
    except (ValueError, OSError) as error:
        # The report shows data that cannot be read. A TFDS set that is not prepared is
        # a mistake of the command.
        if kind == "tfds":
            raise
        out.mkdir(parents=True, exist_ok=True)
        result = unreadable(error, **settings)
    else:
        print(f"format     {splits.description}")
        out.mkdir(parents=True, exist_ok=True)  # may fail: before minutes of work
        result = scan_splits(
            splits,
            **settings,
            keep_ratio=config.data.keep_ratio,
            use_tensorflow=options.tensorflow,
            num_threads=options.threads,
            progress=Progress,
        )
    numbers = {"data": options.data, "config": config.name, **result.to_json()}
    (out / "scan.json").write_text(json.dumps(numbers, indent=1, allow_nan=False))
    page = scan_page(result, options.data).save(out / "scan.html")
    print(format_summary(result))
    print(f"\npage       {page}\nnumbers    {out / 'scan.json'}")
    print(result.verdict(options.strict))
    return 0 if result.is_safe(options.strict) else 1


def default_out(data):
    """The folder for the report on `data`, beside the runs.

    Raises:
        ValueError: it would lie in the data.
    """
    from vfnet_tf.data.formats.readers import find_format

    _, place, _ = find_format(data)
    root = pathlib.Path(place).expanduser().resolve()
    name = re.sub(r"[^\w.-]+", "_", root.name)
    out = pathlib.Path("runs") / f"scan_{name}"
    if out.resolve().is_relative_to(root):
        raise ValueError(
            "The report would lie in the data: say with --out where it should be. "
            f"Received: data={data} from the folder {pathlib.Path.cwd()}"
        )
    return out


def format_summary(result):
    """Text of a `ScanResult`: statistics of the splits, and findings by kind."""
    from vfnet_tf.data.scan.kinds import KINDS

    lines = []
    for name, split in result.splits.items():
        lines += _describe(name, split, result.image_size)
    for kind, findings in result.by_kind().items():
        level, title = KINDS[kind].level, KINDS[kind].title
        count = sum(finding.count for finding in findings)
        lines.append(f"{level:<10} {title}: {count}")
        for finding in findings[:MAX_SHOWN]:
            text = f"{finding.split}: {finding.text}"
            # Eighty classes without boxes would fill a screen. The end of an error names
            # the file.
            width = 1000 if level == "error" else 200
            lines.append(f"{'':<13}{textwrap.shorten(text, width, placeholder=' ...')}")
        if len(findings) > MAX_SHOWN:
            lines.append(f"{'':<13}and {len(findings) - MAX_SHOWN} more")
    return "\n".join(lines)


def _describe(name, split, image_size):
    """Two lines on a `SplitStatistics`."""
    numbers = split.to_json()

    def extent(prefix, key, suffix=""):
        sides = [numbers[f"{prefix}_{side}{suffix}"] for side in ("height", "width")]
        return "x".join(f"{side[key]:.0f}" for side in sides)

    lines = [
        f"{name:<10} {split.num_images} of {split.num_listed} images, smallest sides "
        f"{extent('image', 'min')}, largest {extent('image', 'max')} (height x width)"
    ]
    if split.num_boxes:
        suffix = "_at_training_size"
        text = (
            f"{split.num_boxes} boxes of {len(split.class_counts)} classes; at "
            f"{image_size[0]}x{image_size[1]} sides from {extent('box', 'min', suffix)} "
            f"to {extent('box', 'max', suffix)}, mean {extent('box', 'mean', suffix)}"
        )
        lines.append(f"{'':<11}{text}")
    return lines
