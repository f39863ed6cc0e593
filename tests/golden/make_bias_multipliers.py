"""Makes `bias_multipliers.json`: how the official optimizers treat biases.

Run: `python tests/golden/make_bias_multipliers.py REFERENCE`, where REFERENCE
holds `sched/*.optim.json`, recorded from the authors' implementation.

Result: `{config: {parameter: [lr / base lr, decay / base decay]}}` for the
parameters called `*.bias`, in the official names (a normalisation layer's
`bias` is our `beta`), and whether any other parameter has multipliers.
"""

import json
import pathlib
import sys

CONFIGS = {
    "vfnet_r50_fpn_1x_coco",
    "vfnet_r50_fpn_mdconv_c3-c5_mstrain_2x_coco",
    "vfl_retinanet_r50_fpn_4x4_1x_coco",
}


def read(path):
    record = json.loads(path.read_text())
    base = record["base"]
    biases, others = {}, set()
    for name, values in record["params"].items():
        lr_multiplier = values["lr"] / base["lr"]
        decay_multiplier = values["weight_decay"] / base["weight_decay"]
        if name.endswith(".bias"):
            biases[name] = [lr_multiplier, decay_multiplier]
        else:
            others.add((lr_multiplier, decay_multiplier))
    return {"biases": biases, "others": sorted(others)}


def main(reference):
    folder = pathlib.Path(reference) / "sched"
    kept = {name: read(folder / f"{name}.optim.json") for name in sorted(CONFIGS)}
    target = pathlib.Path(__file__).parent / "bias_multipliers.json"
    target.write_text(json.dumps(kept, indent=0, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
