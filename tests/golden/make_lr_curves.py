"""Makes `lr_curves.npz`: rates of the official 1x schedule and of the SWA phase.

Run: `python tests/golden/make_lr_curves.py REFERENCE`, where REFERENCE holds
`sched/lr_curves.npz`, recorded from the authors' implementation (float64
`[iterations, 2]`: normal parameters, biases).

Kept are all of them. Of the step schedule: 12 epochs of 700 iterations, and 12 of 60,
where the first drop falls into the warm-up. Of the SWA phase: 12 epochs of 50
iterations and 18 of 37.
"""

import pathlib
import sys

import numpy as np


def main(reference):
    here = pathlib.Path(__file__).parent
    with np.load(pathlib.Path(reference) / "sched" / "lr_curves.npz") as curves:
        kept = {name: curves[name] for name in curves}
    np.savez_compressed(here / "lr_curves.npz", **kept)


if __name__ == "__main__":
    main(sys.argv[1])
