"""`vfnet study TABLE`: trains the rows of one of the paper's tables."""

import dataclasses
import pathlib
from typing import Literal

import tyro

from vfnet_tf.cli.training_options import (
    TrainingOptions,
    read_data,
    resolve,
    stoppable,
)
from vfnet_tf.progress import fit_verbosity


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyOptions(TrainingOptions):
    """Train the rows of one of the paper's tables, and print it beside own numbers.

    All rows are trained from --config with the options given, on the same images in the
    same order and from the same initial weights; each takes from its own config only
    what makes the row. Without --data they are trained on generated images. A stopped
    study goes on when the same command is run again.

    Rows of table2: gamma1p0_alpha0p50, gamma1p5_alpha0p75, gamma2p0_alpha0p75,
    gamma2p0_alpha0p75_unweighted, gamma2p5_alpha1p25, gamma3p0_alpha1p00. Of table3:
    raw, raw_vfl, star, vfnet, fcos_atss. Of table5: DETECTOR_LOSS with retinanet,
    foveabox, reppoints, atss, vfnet and focal, quality_focal, varifocal.
    """

    table: tyro.conf.Positional[Literal["table2", "table3", "table5"]]
    """the varifocal loss's settings, the components of VFNet, or losses by detector"""
    rows: tuple[str, ...] = ()
    """names of the rows to train, all by default; others can follow later"""
    out: pathlib.Path | None = None
    """folder of the study, runs/study_TABLE by default; a stopped study goes on from
    there"""


OPTIONS = StudyOptions


def run(options):
    """Trains the rows and prints the table; returns the exit status."""
    out = options.out or pathlib.Path("runs") / f"study_{options.table}"
    return stoppable(lambda: _run(options, out), lambda: _newest_run(out))


def _newest_run(out):
    """The run directory in the folder of a study that was written last."""
    states = [*out.glob("*/last.weights.h5")]
    newest = max(states, key=lambda path: path.stat().st_mtime, default=out / "none")
    return newest.parent


def _run(options, out):
    from vfnet_tf.paper.study import Study, find_rows
    from vfnet_tf.training import strategies, trainer
    from vfnet_tf.training.initial_weights import with_weights

    if options.strategy == "multi_worker":
        raise ValueError(
            "A study trains on one host: choose mirrored, or train its rows one by one "
            f"with `vfnet train`. Received: strategy={options.strategy}"
        )
    find_rows(options.table, options.rows)  # refuses a wrong name before data is read
    base = resolve(options)
    strategy = strategies.make_strategy(options.strategy)
    strategies.check_settings(strategy, jit_compile=options.jit)
    print(f"devices    {trainer.local_devices()}")
    datasets = read_data(options, strategy)
    study = Study(
        options.table,
        base,
        *datasets,
        out,
        rows=options.rows,
        start=lambda config: with_weights(
            config, options.weights, out, is_generated=options.data is None
        )[:2],
        settings={"weights": options.weights},
        strategy=strategy,
        evaluate_every=options.evaluate_every,
        jit_compile=options.jit,
    )
    study.run(verbose=fit_verbosity())
    return 0
