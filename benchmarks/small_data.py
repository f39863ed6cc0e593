"""What augmentations and the parts of the recipe are worth on a small data set.

Each row is a training by `vfnet train` that differs from the first row in one thing, with
several seeds, evaluated on the validation images. A row that is finished is not trained
again, so the study may be stopped, and divided: `--seeds 0` in one shell and `--seeds 1`
in another. Each call ends with the table of all rows that are there.

    python benchmarks/small_data.py --data DIR --weights FILE --out runs/small_data
"""

import argparse
import dataclasses
import json
import pathlib
import subprocess
import sys

from vfnet_tf.config import load_config, override, save_config
from vfnet_tf.data import augmentation as a

CONFIG = "vfnet_r50_fpn_1x_coco"
BASELINE = "auto"


@dataclasses.dataclass(frozen=True)
class Row:
    """A training: what it is called, its `DataConfig.augment`, options of `vfnet train`."""

    name: str
    augment: str | tuple = "flip"
    options: tuple[str, ...] = ()


ROWS = (
    Row(BASELINE),
    Row("no augmentation", "none"),
    Row("light", "light"),
    Row("strong", "strong"),
    Row("vertical flip", (a.VerticalFlip(),)),
    Row("vertical flip, quarter turns", (a.VerticalFlip(), a.QuarterTurn())),
    Row("colours", (a.PhotometricDistortion(),)),
    Row("scale jitter .8 to 1.25", (a.LargeScaleJitter(scale=(0.8, 1.25)),)),
    Row("scale jitter .5 to 2", (a.LargeScaleJitter(scale=(0.5, 2.0)),)),
    Row("affine", (a.RandomAffine(),)),
    Row("crop", (a.MinIoUCrop(),)),
    Row("mosaic", (a.Mosaic(probability=0.5),)),
    Row("mixup", (a.MixUp(probability=0.3),)),
    Row("copy-paste", (a.CopyPaste(probability=0.3),)),
    Row("blur and noise", (a.GaussianBlur(), a.GaussianNoise())),
    Row("oversampled classes", options=("--oversample", "0.9")),
    Row("steps in place of the cosine", options=("--schedule", "step")),
    Row("no average of weights", options=("--ema", "0")),
    Row("rate .004", options=("--learning-rate", "0.004", "--optimizer", "adamw")),
    Row("SGD", options=("--optimizer", "sgd")),
    Row(
        "SGD, rate .02, clipped at 35",
        options=("--optimizer", "sgd", "--learning-rate", "0.02", "--clip-norm", "35"),
    ),
    Row("paper's recipe", options=("--recipe", "paper", "--batch-size", "4")),
)


def main(arguments=None):
    """Trains the rows that are missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--out", type=pathlib.Path, default="runs/small_data")
    parser.add_argument("--backbone", default="keras:ResNet50")
    parser.add_argument("--image-size", nargs=2, default=("240", "320"))
    parser.add_argument(
        "--filters",
        type=int,
        default=128,
        help="of neck and head; half of the paper's, so that a run takes minutes",
    )
    parser.add_argument("--precision", default="mixed_bfloat16")
    parser.add_argument("--epochs", default="8")
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1))
    parser.add_argument("--rows", nargs="+", choices=[row.name for row in ROWS])
    options = parser.parse_args(arguments)
    for row in ROWS:
        for seed in options.seeds:
            if options.rows is None or row.name in options.rows:
                train(row, seed, options)
    print(format_table(read_metrics(options.out)))


def train(row, seed, options):
    """One training in a process of its own, unless its metrics are there."""
    out = options.out / f"{row.name}, seed {seed}"
    if (out / "metrics.json").exists():
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    config = override(
        load_config(CONFIG),
        data__augment=row.augment,
        model__neck_filters=options.filters,
        model__head_filters=options.filters,
    )
    path = options.out / f"{row.name}.json"
    save_config(config, path)
    command = [sys.executable, "-m", "vfnet_tf.cli", "train", "--config", str(path)]
    command += ["--data", options.data, "--weights", options.weights]
    command += ["--backbone", options.backbone, "--precision", options.precision]
    command += ["--image-size", *options.image_size, "--epochs", options.epochs]
    command += ["--evaluate-every", options.epochs, "--seed", str(seed)]
    command += ["--strategy", "one_device", "--no-export", "--out", str(out)]
    if "--recipe" not in row.options:
        command += ["--recipe", "auto"]
    with (options.out / f"{row.name}, seed {seed}.log").open("w") as log:
        subprocess.run([*command, *row.options], stdout=log, stderr=log, check=True)


def read_metrics(folder):
    """Dict from the name of a row to the list of the metrics of its seeds."""
    found = {}
    for row in ROWS:
        paths = sorted(folder.glob(f"{row.name}, seed */metrics.json"))
        if paths:
            found[row.name] = [json.loads(path.read_text()) for path in paths]
    return found


def format_table(rows):
    """Markdown of the mean and range of AP and the mean AP50, and what AP has gained."""
    lines = ["| | seeds | AP | AP50 | to the first row |", "|---|---|---|---|---|"]
    base = _mean([each["AP"] for each in rows.get(BASELINE, [])])
    for name, metrics in rows.items():
        values = [each["AP"] for each in metrics]
        gain = (
            "" if base is None or name == BASELINE else f"{_mean(values) - base:+.3f}"
        )
        lines.append(
            f"| {name} | {len(values)} | {_mean(values):.3f} ({min(values):.3f} to "
            f"{max(values):.3f}) | {_mean([m['AP50'] for m in metrics]):.3f} | {gain} |"
        )
    return "\n".join(lines)


def _mean(values):
    return sum(values) / len(values) if values else None


if __name__ == "__main__":
    main()
