"""Curves of losses and metrics by epoch, of one run or of several."""

import csv
import os
import warnings

import numpy as np

from vfnet_tf.files import replacing
from vfnet_tf.foreign_text import figure_text


def plot_history(history, png_path):
    """Draws the curves of a training: losses, COCO metrics, learning rate.

    Columns that end in `loss` share a panel (those of `val_` dashed), as do those of AP
    and AR. The learning rate (`lr` or `learning_rate`) has its own. Other columns, empty
    cells, NaN and panels without a point are left out.

    Args:
        history: path of a CSV file with a header, or a dict of name -> sequence. The
            column `epoch` (or `step`) is the horizontal axis; without one the rows
            count from 1.
        png_path: the file to write, whole or not at all. Missing folders are made.

    Raises:
        ValueError: there is no row, or no column to draw.
    """
    panels = _history_panels(history)
    figure = new_figure(5.6 * len(panels), 4.2)
    for axes, panel in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        _plot_panel(axes, *panel)
    with replacing(png_path, is_shared=True) as temporary:
        save_figure(figure, temporary, dpi=110)


def history_figures(history):
    """The panels of `plot_history`, each as a figure of its own.

    Args:
        history: see `plot_history`, which raises the same errors.

    Returns:
        list of `matplotlib.figure.Figure`.
    """
    figures = []
    for panel in _history_panels(history):
        figure = new_figure()
        _plot_panel(figure.subplots(), *panel)
        figures.append(figure)
    return figures


def compare_histories(histories, names=("loss", "val_AP", "val_AP50", "learning_rate")):
    """Curves of several runs in common axes, a figure for each quantity.

    Args:
        histories: dict from the name of a run to its history, see `plot_history`.
        names: the columns to draw; a column without values is left out.

    Returns:
        list of `matplotlib.figure.Figure`.
    """
    tables = {run: history_columns(history) for run, history in histories.items()}
    figures = []
    for name in names:
        there = {
            run: table
            for run, table in tables.items()
            if np.isfinite(table.get(name, [np.nan])).any()
        }
        if not there:
            continue
        figure = new_figure()
        axes = figure.subplots()
        for number, run in enumerate(tables):
            if run in there:
                x_name, x = _horizontal(there[run])
                _plot_curve(axes, x, there[run][name], f"C{number % 10}", "-", run)
        kind = next((title for title, has in _PANELS.items() if has(name)), "")
        curves = [table[name] for table in there.values()]
        _finish_axes(axes, kind, name, x_name, curves)
        figures.append(figure)
    return figures


def _history_panels(history):
    """Groups the columns of a history: list of (title, name of x, x, curves)."""
    columns = history_columns(history)
    lengths = {name: len(values) for name, values in columns.items()}
    if not lengths or max(lengths.values()) == 0 or len(set(lengths.values())) > 1:
        raise ValueError(
            "`history` must have columns of one length, at least one row. Received: "
            f"lengths {lengths}"
        )
    x_name, x = _horizontal(columns)
    panels = {
        title: {
            name: values
            for name, values in columns.items()
            if belongs(name) and np.isfinite(values).any()
        }
        for title, belongs in _PANELS.items()
    }
    panels = [(title, x_name, x, curves) for title, curves in panels.items() if curves]
    if not panels:
        raise ValueError(
            "`history` must have numbers of a loss, a COCO metric or a learning rate. "
            f"Received: columns {sorted(columns)}"
        )
    return panels


def new_figure(width=5.6, height=3.8):
    """A `matplotlib.figure.Figure` without pyplot; sizes in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure, file, **settings):
    """`figure.savefig` without a warning for each character that the font has not."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from ")
        figure.savefig(file, **settings)


def _horizontal(columns):
    """The name and the values of the horizontal axis."""
    x_name = next((name for name in ("epoch", "step") if name in columns), "row")
    rows = max(map(len, columns.values()))
    return x_name, columns.get(x_name, np.arange(1, rows + 1))


def _plot_panel(axes, title, x_name, x, curves):
    # Training and validation share the colour of a quantity.
    bases = list(dict.fromkeys(name.removeprefix("val_") for name in curves))
    for name, values in curves.items():
        color = f"C{bases.index(name.removeprefix('val_')) % 10}"
        paired = title == "loss" and name.startswith("val_")
        _plot_curve(axes, x, values, color, "--" if paired else "-", name)
    shown = title
    best = next((n for n in ("val_AP", "AP") if n in curves), None)
    if best and title == "COCO metrics":
        at = int(np.nanargmax(curves[best]))
        shown = f"{best}: best {curves[best][at]:.3f} at {x_name} {x[at]:g}"
    _finish_axes(axes, title, shown, x_name, curves.values())


def _plot_curve(axes, x, values, color, linestyle, label):
    there = np.isfinite(values) & np.isfinite(x)
    axes.plot(
        x[there],
        values[there],
        color=color,
        linestyle=linestyle,
        linewidth=1.4,
        marker="." if there.sum() <= 60 else None,
        label=figure_text(label),
    )


def _finish_axes(axes, kind, title, x_name, curves):
    from matplotlib.ticker import MaxNLocator

    if kind == "COCO metrics":
        axes.set_ylim(0, 1)
    elif kind == "learning rate" and _spans_decades(*curves):
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.set_title(figure_text(title, 100))
    axes.set_xlabel(x_name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def _spans_decades(*curves):
    values = np.concatenate(curves)
    values = values[np.isfinite(values)]
    return values.min() > 0 and values.max() / values.min() > 20


# Titles of panels, and which columns belong to them.
_PANELS = {
    "loss": lambda name: name.endswith("loss"),
    "COCO metrics": lambda name: name.removeprefix("val_")[:2] in ("AP", "AR"),
    "learning rate": lambda name: name in ("lr", "learning_rate"),
}


def history_columns(history):
    """The columns of a history, of this package or of Keras's `CSVLogger`.

    Args:
        history: path of a CSV file with a header, or a dict of name -> sequence.

    Returns:
        dict of float64 arrays; NaN for cells that are no numbers.

    Raises:
        ValueError: the file does not exist, or is no table of text.
    """
    if not isinstance(history, dict):
        path = os.fspath(history)
        if not os.path.exists(path):
            raise ValueError(f"The history must exist. Received: path={path}")
        rows = read_rows(path)
        names = [name for name in (rows[0] if rows else {}) if name]
        history = {name: [row[name] for row in rows] for name in names}
    return {
        name: np.array([_number(value) for value in values], "float64")
        for name, values in history.items()
    }


def read_rows(path):
    """The lines of a CSV file as dicts by its header; a ValueError names the file."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"The file must be a CSV. Received: {path}: {error}"
        ) from error


def _number(value):
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")
