"""Several runs side by side: settings, metrics and curves."""

import dataclasses
import json
import math
import pathlib

from vfnet_tf.data.text import read_json_file

_TRAINING = "end of training"


@dataclasses.dataclass(frozen=True)
class Run:
    """The content of a run directory.

    Attributes:
        name: str, the directory's name, or its path if two have the same name.
        directory: `pathlib.Path`.
        settings: dict from dotted keys such as `"model.neck"` to values as json.
        history: dict of float arrays by column, empty without a history.csv.
        metrics: dict from the place of measurement to the dict of a metrics.json.
    """

    name: str
    directory: pathlib.Path
    settings: dict
    history: dict
    metrics: dict


def compare_runs(directories, data=None, split="val"):
    """Reads runs and makes the tables of their differences.

    Args:
        directories: paths of two or more run directories.
        data: path of the data of the evaluations, for error types and calibration;
            None leaves these out.
        split: `"train"`, `"val"` or `"test"`, the part of `data`.

    Returns:
        (list of `Run`; list of (title, (header, rows), note)).

    Raises:
        ValueError: a directory holds no run, or a run no detections for `data`.
    """
    runs = read_runs(directories)
    tables = [
        ("Runs", overview_table(runs), "Best: the epoch with the highest val_AP."),
        ("Settings that differ", settings_table(runs), "All others are the same."),
        *metric_tables(runs),
    ]
    if data is not None:
        tables.append(analysis_tables(runs, data, split))
    return runs, tables


def read_runs(directories):
    """Reads run directories.

    Args:
        directories: sequence of paths.

    Returns:
        list of `Run`.

    Raises:
        ValueError: a directory holds no run, or a file in it cannot be read.
    """
    from vfnet_tf.reports.curves import history_columns

    paths = [pathlib.Path(directory) for directory in directories]
    last = [path.resolve().name for path in paths]
    runs = []
    for path, name in zip(paths, last, strict=True):
        files = [path / "metrics.json", *sorted(path.glob("evaluation_*/metrics.json"))]
        metrics = {
            _TRAINING if file.parent == path else file.parent.name: read_json_file(file)
            for file in files
            if file.is_file()
        }
        history = path / "history.csv"
        if not metrics and not history.is_file():
            raise ValueError(
                "A run directory must hold history.csv, metrics.json or an evaluation. "
                f"Received: {path}"
            )
        config = path / "config.json"
        runs.append(
            Run(
                name=name if last.count(name) == 1 else str(path),
                directory=path,
                settings=dict(_leaves(read_json_file(config)))
                if config.is_file()
                else {},
                history=history_columns(history) if history.is_file() else {},
                metrics=metrics,
            )
        )
    return runs


def text_table(header, rows):
    """A table for the terminal, its first column to the left.

    Args:
        header: sequence of str.
        rows: sequence of sequences, see `web_page.table_html`.
    """
    from vfnet_tf.reports.web_page import cell_text

    lines = [[cell_text(value) for value in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  " + "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )  # fmt: skip


def overview_table(runs):
    """Epochs, best and last val_AP and minutes of each run."""
    rows = []
    for one in runs:
        ap = list(one.history.get("val_AP", ()))
        measured = [value for value in ap if not math.isnan(value)]
        best = max(measured, default=math.nan)
        epochs = one.history.get("epoch", [math.nan] * max(len(ap), 1))
        rows.append(
            (
                one.name,
                _whole(max(epochs)),
                best,
                _whole(epochs[ap.index(best)]) if measured else None,
                measured[-1] if measured else None,
                sum(one.history.get("seconds", [math.nan])) / 60,
            )
        )
    header = ("run", "epochs", "best val_AP", "at epoch", "last val_AP", "minutes")
    return header, rows


def settings_table(runs):
    """The settings in which the runs differ."""
    keys = list(dict.fromkeys(key for one in runs for key in one.settings))
    values = {key: [one.settings.get(key, "–") for one in runs] for key in keys}
    rows = [
        (key, *row) for key, row in values.items() if any(v != row[0] for v in row[1:])
    ]
    return _header("setting", runs, differences=False), rows


def metric_tables(runs):
    """Yields a table of metrics for each place of measurement, and one by class."""
    places = list(dict.fromkeys(place for one in runs for place in one.metrics))
    for place in places:
        found = [one.metrics.get(place, {}) for one in runs]
        names = [name for name in found[0] or found[-1] if name != "per_class"]
        rows = [_compared(name, [one.get(name) for one in found]) for name in names]
        note = (
            "As training evaluates; commands pad images less and may differ by a hair."
        )
        if place != _TRAINING:
            note = "Of `vfnet evaluate`."
        yield f"Metrics, {place}", (_header("metric", runs), rows), note
    shared = [place for place in places if all(place in one.metrics for one in runs)]
    if shared:
        place = shared[-1]  # an evaluation, if there is one
        found = [one.metrics[place].get("per_class", {}) for one in runs]
        names = list(dict.fromkeys(name for one in found for name in one))
        rows = [
            _compared(name, [one.get(name, {}).get("AP") for one in found])
            for name in names
        ]
        rows.sort(key=lambda row: abs(_difference(*row[1:3]) or 0), reverse=True)
        title = f"AP by class, {place}"
        yield title, (_header("class", runs), rows), "Largest difference first."


def analysis_tables(runs, data, split):
    """Error types and calibration of the saved detections on a split."""
    from vfnet_tf.data.formats.readers import find_splits
    from vfnet_tf.evaluation.calibration import calibrate
    from vfnet_tf.evaluation.coco import CocoEvaluator, read_results
    from vfnet_tf.evaluation.error_types import error_costs
    from vfnet_tf.evaluation.matching import match_detections

    annotations, _ = find_splits(data).locate(split)
    evaluator = CocoEvaluator(annotations)
    columns = []
    for one in runs:
        file = one.directory / f"evaluation_{split}" / "detections.json"
        if not file.is_file():
            raise ValueError(
                f"--data compares the detections of each run, which `vfnet evaluate "
                f"--checkpoint {one.directory} --data {data} --split "
                f"{split}` writes. Received: {file}, which does not exist"
            )
        matches = match_detections(evaluator, read_results(file, evaluator))
        costs, calibration = error_costs(matches), calibrate(matches)
        entries = {**costs["main"], **costs["special"]}
        columns.append(
            {
                "AP50": costs["AP"],
                **{f"cost: {name}": entry["cost"] for name, entry in entries.items()},
                "score and IoU: Pearson": calibration.pearson,
                "score and IoU: Spearman": calibration.spearman,
                "score and IoU: mean distance": calibration.gap,
            }
        )
    rows = [_compared(name, [one[name] for one in columns]) for name in columns[0]]
    note = (
        "Costs: what AP50 would gain if that type of error alone were mended; scores "
        "beside the IoU with the best object of the class, of detections with IoU >= 0.1."
    )
    return f"Errors and scores, {split}", (_header("", runs), rows), note


def write_comparison(path, runs, tables):
    """Writes the tables and the curves of all runs as one html file."""
    from vfnet_tf.reports import curves, web_page

    names = ", ".join(one.name for one in runs)
    page = web_page.WebPage("Comparison of runs", names)
    for title, (header, rows), note in tables:
        table = web_page.table_html(header, rows) if rows else "<p>none</p>"
        page.add(title, table, note=note)
        if title == "Runs":
            histories = {one.name: one.history for one in runs if one.history}
            drawn = curves.compare_histories(histories)
            if drawn:
                figures = [web_page.figure_html(figure) for figure in drawn]
                page.add("Curves", web_page.gallery_html(figures, 420))
    return page.save(path)


def _header(first, runs, differences=True):
    names = [one.name for one in runs]
    more = [f"{name} − {names[0]}" for name in names[1:]] if differences else []
    if len(more) == 1:
        more = ["difference"]
    return (first, *names, *more)


def _compared(name, values):
    """A row with the differences to the first value; None if a value is missing."""
    differences = [_difference(values[0], value) for value in values[1:]]
    return (name, *values, *(None if d is None else f"{d:+.3f}" for d in differences))


def _difference(first, second):
    return None if None in (first, second) else second - first


def _leaves(values, prefix=""):
    """Yields (`"model.neck"`, text of the value) of nested dicts."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:  # a text, since tables round numbers: a rate of 0.0001 would be 0.000
            yield f"{prefix}{key}", json.dumps(value)


def _whole(value):
    return None if math.isnan(value) else int(value)
