"""Names of the saved states of a run, for commands that have not loaded Keras yet."""

import pathlib


def state_paths(run_dir, keep=2):
    """Paths of all states that a run may have, the last one first.

    Args:
        run_dir: folder of the run.
        keep: int > 0, see `ResumableCheckpoint`.
    """
    names = ["last", *(f"last-{number}" for number in range(1, keep))]
    return [pathlib.Path(run_dir) / f"{name}.weights.h5" for name in names]


def find_state(run_dir):
    """Path of the newest saved state of a run, or None."""
    return next((path for path in state_paths(run_dir) if path.exists()), None)


def how_to_go_on(run_dir):
    """A sentence on what the same command does with a run that was stopped."""
    path = find_state(run_dir)
    if path is None:
        return "No state is saved: the same command starts again."
    return f"The same command goes on from {path}."
