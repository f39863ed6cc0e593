"""Writes `model_zoo.md`: a row for each shipped config of a published result.

`python docs/model_zoo.py` takes the AP from `vfnet_tf.paper.published`, sizes from the
table of all models in `results.md`, and all else from the configs themselves.
"""

import ast
import pathlib
import re

from vfnet_tf.config import list_configs, load_config
from vfnet_tf.paper.model_cards import ARCHITECTURE
from vfnet_tf.paper.published import find_result

DOCS = pathlib.Path(__file__).parent
BACKBONES = {
    "resnet50": "ResNet-50",
    "resnet101": "ResNet-101",
    "resnext101_32x4d": "ResNeXt-101-32x4d",
    "resnext101_64x4d": "ResNeXt-101-64x4d",
    "res2net101_v1d_26w_4s": "Res2Net-101",
}
TEXT = """\
# Model zoo
Every config in `configs/` that stands for a published result, 80 classes of COCO. **AP is
the published one**, of the official weights or the paper, in percent; nothing on this page
was trained here ([what was measured here](results.md)). DCN: deformable convolutions in C3
to C5 and at the end of the head's towers.

```python
import vfnet_tf

print(vfnet_tf.list_configs())
config = vfnet_tf.load_config("vfnet_r50_fpn_1x_coco")
detector = vfnet_tf.build_detector(config)  # random weights
```
Eight of the official weights are downloaded by name ([weights](weights.md)). With a file at
hand (PyTorch is not needed to read it):
```bash
vfnet convert vfnet_r50.pth --config vfnet_r50_fpn_1x_coco --out runs/official
vfnet predict street.jpg --checkpoint runs/official --out found
vfnet evaluate --data DIR --checkpoint runs/official
# A detector for other classes starts from all but the classifier:
vfnet train --data DIR --config vfnet_r50_fpn_1x_coco --weights vfnet_r50.pth
```
"""
#: columns of the two tables
RELEASED = (
    "config",
    "backbone",
    "epochs",
    "short side in training",
    "AP val2017",
    "AP test-dev",
    "parameters, M",
    "GFLOP",
)
COMPARED = ("config", "what", "AP val2017", "parameters, M", "GFLOP")
NOTES = """\
Parameters and GFLOP are those of one image of 800x1344, a multiply-add counts as two:
[all published models](results.md#all-published-models), with times and memory. Tested
within 1333x800 (short side 800, long side up to 1333), VFNet-X also within 1800x1200 (its
second number). VFNet-X is trained with crops and cut-outs, then 18 more epochs of weight
averaging by `vfnet swa`, and tested with soft-NMS. FCOS with its own assignment was
published on another variant of ResNet-50. `vfl_*` with other losses: `--class-loss focal`,
`--class-loss quality_focal`; `vfnet study table5` has the published AP of each.

Two more configs are not of COCO: `vfnet_r50_bccd`
([blood cells](results.md#bccd-blood-cells-the-official-settings)) and
`vfnet_r50_synthetic` (`make train`).
"""


def published_ap(name):
    """The published AP of a config on val2017 and on test-dev.

    Args:
        name: str.

    Returns:
        (str, str), empty where there is none; two test sizes stand beside each other.
    """
    result = find_result(name)
    if result is None:
        return "", ""
    test_dev = (result.test_dev, result.test_dev_large)
    return (
        "" if result.val is None else f"{result.val:.1f}",
        " / ".join(f"{ap:.1f}" for ap in test_dev if ap is not None),
    )


def measured_sizes():
    """`(parameters, GFLOP)` as `results.md` has them, by architecture.

    Returns:
        dict tuple of `ARCHITECTURE`'s fields -> (str, str).
    """
    text = (DOCS / "results.md").read_text("utf-8")
    rows = re.findall(r"^\| (\S+_coco) \| ([\d.]+) \| (\d+) \|", text, re.MULTILINE)
    return {architecture(name): sizes for name, *sizes in rows}


def architecture(name):
    """What decides the size of a config's model."""
    model = load_config(name).model
    return tuple(getattr(model, field) for field in ARCHITECTURE)


def make_cells(name, docstring, size):
    """What the tables say of a config.

    Args:
        name: str, of a config.
        docstring: str, its file's.
        size: (parameters, GFLOP) as str.

    Returns:
        dict column -> text.
    """
    config = load_config(name)
    backbone = BACKBONES[config.model.backbone.name]
    if config.model.backbone.deformable:
        backbone += "-DCN"
    scales = config.data.scale_range
    sides = f"{scales[0][0]} to {scales[1][0]}" if scales else "800"
    val, test_dev = published_ap(name)
    return {
        "config": f"`{name}`",
        "what": docstring.split("\n\n")[0].rstrip("."),
        "backbone": backbone,
        "epochs": config.training.epochs,
        "short side in training": sides,
        "AP val2017": val,
        "AP test-dev": test_dev,
        "parameters, M": size[0],
        "GFLOP": size[1],
    }


def make_page():
    """The text of `model_zoo.md`."""
    sizes = measured_sizes()
    tables = {columns: [] for columns in (RELEASED, COMPARED)}
    names = [name for name in list_configs() if "_coco" in name]
    for name in sorted(names, key=lambda name: float(sizes[architecture(name)][1])):
        path = DOCS.parent / "configs" / f"{name}.py"
        docstring = ast.get_docstring(ast.parse(path.read_text("utf-8")))
        is_released = re.search(r"Table 4|official repository|ablations", docstring)
        columns = RELEASED if is_released else COMPARED
        cells = make_cells(name, docstring, sizes[architecture(name)])
        tables[columns].append(_line(cells[column] for column in columns))
    titles = (
        "The models of the official release",
        "Rows of the paper's Tables 2, 3 and 5\nResNet-50, 12 epochs, short side 800.\n",
    )
    parts = [TEXT]
    for title, (columns, rows) in zip(titles, tables.items(), strict=True):
        parts += [f"## {title}", _line(columns), "|---" * len(columns) + "|", *rows, ""]
    return "\n".join([*parts, NOTES])


def _line(cells):
    return "| " + " | ".join(map(str, cells)) + " |"


if __name__ == "__main__":
    (DOCS / "model_zoo.md").write_text(make_page(), "utf-8")
