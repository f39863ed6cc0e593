"""Studies: training of the rows of Tables 2, 3 and 5 of the paper.

The rows of a table are trained one after the other from one base config and differ in
one setting each. All rows see the same images in the same order. Variables that several
rows have start from the same values.
"""

import gc
import hashlib
import json
import pathlib

import keras
import numpy as np

from vfnet_tf import builder
from vfnet_tf import config as configs
from vfnet_tf.data.formats.coco_classes import COCO_CLASS_NAMES
from vfnet_tf.files import replacing
from vfnet_tf.paper.published import TABLES
from vfnet_tf.training.trainer import Trainer, find_differences, without_weight_file

#: Images of COCO train2017 with objects; a study on fewer is called small-scale.
NUM_COCO_IMAGES = 117_266

#: Fields of `ModelConfig` that a row takes from its config.
ROW_FIELDS = (
    "detector",
    "star",
    "refine",
    "assigner",
    "class_loss",
    "loss_alpha",
    "loss_gamma",
    "iou_weighted",
    "focal_alpha",
    "focal_gamma",
    "box_loss_weight",
    "refined_box_loss_weight",
    "centerness_loss_weight",
    "nms_iou_threshold",
)


def row_config(row, base):
    """The config that a row trains with.

    Args:
        row: `Row`.
        base: `Config` of all rows.

    Returns:
        `base` with the model fields `ROW_FIELDS` of the row's own config and, for SGD,
        its multipliers for biases. The towers get as many more convolutions than the
        base as the row's own config has more than VFNet.
    """
    own = configs.shipped_config(row.config)
    model = {name: getattr(own.model, name) for name in ROW_FIELDS} | row.changes
    extra = own.model.head_convs - configs.ModelConfig().head_convs
    model["head_convs"] = base.model.head_convs + extra
    changes = {f"model__{name}": value for name, value in model.items()}
    if base.training.optimizer == "sgd":
        for name in ("bias_lr_multiplier", "bias_decay_multiplier"):
            changes[f"training__{name}"] = getattr(own.training, name)
    return configs.override(base, name=row.name, **changes)


def find_rows(table, names=()):
    """Rows of a table by name, in the table's order; all if no name is given.

    Raises:
        ValueError: the table has no such row.
    """
    rows = find_table(table).rows
    unknown = sorted(set(names) - {row.name for row in rows})
    if unknown:
        raise ValueError(
            f"`rows` of {table} must be among {', '.join(row.name for row in rows)}. "
            f"Received: {', '.join(unknown)}"
        )
    return [row for row in rows if row.name in names or not names]


def find_table(name):
    """The `Table` of that name; ValueError if there is none."""
    if name not in TABLES:
        raise ValueError(f"`table` must be one of {sorted(TABLES)}. Received: {name}")
    return TABLES[name]


class Study:
    """Trains rows of a table in the folder `out`; a stopped study goes on.

    `out` gets a run directory for each row, named like the row; `study.json` with the
    settings; `initial_weights.npz`; and the table as `TABLE.md` and `TABLE.json`.

    Args:
        table: key of `TABLES`.
        base: `Config` of all rows.
        train_dataset, val_dataset: `DetectionDataset`s.
        out: folder.
        rows: names of the rows to train; empty for all.
        start: function from the base to a base with initial weights and the
            `initial_weights` of `Trainer`; called only for a new study.
        settings: dict of JSON types; a study goes on only with the same ones.
        strategy, evaluate_every, jit_compile: see `Trainer`.

    Attributes:
        base: `Config` of all rows, without the file of its weights.
        is_pretrained: bool, whether the rows start from given weights.

    Raises:
        ValueError: the table or a row is unknown, there are no validation images, or
            `out` holds a study with other settings.
    """

    def __init__(
        self,
        table,
        base,
        train_dataset,
        val_dataset,
        out,
        rows=(),
        start=None,
        settings=None,
        strategy=None,
        evaluate_every=1,
        jit_compile=False,
    ):
        self.table = table
        self.rows = find_rows(table, rows)
        if val_dataset is None:
            raise ValueError(
                "A study compares AP: the data must have a validation split. "
                "Received: training images only"
            )
        self.datasets = (train_dataset, val_dataset)
        self.out = pathlib.Path(out)
        self._training = {
            "strategy": strategy,
            "evaluate_every": evaluate_every,
            "jit_compile": jit_compile,
        }
        self._settings = {
            "table": table,
            "base": configs.to_dict(base),
            "train": _fingerprint(train_dataset),
            "validation": _fingerprint(val_dataset),
            "evaluate_every": evaluate_every,
            **(settings or {}),
        }
        saved = self._read()
        if saved is None:
            base, weights = start(base) if start else (base, None)
            saved = self._begin(base, weights)
        self.is_pretrained = saved.get("is_pretrained", False)
        backbone = configs.from_dict(saved["backbone"], configs.BackboneConfig)
        self.base = configs.override(base, model__backbone=backbone)

    def run(self, verbose="auto"):
        """Trains the rows that are not finished; prints the table after each.

        Args:
            verbose: as in `keras.Model.fit`.

        Returns:
            dict from the name of each finished row to the metrics of its best weights.
        """
        trained = False
        for number, row in enumerate(self.rows, 1):
            run_dir = self.out / row.name
            place = f"row {number} of {len(self.rows)}: {row.name}"
            if self._metrics(row) is not None:
                print(f"\n{place} is finished already: {run_dir}", flush=True)
                continue
            trained = True
            print(f"\n{place}", flush=True)
            training = self.trainer(row)
            print(training.describe(), flush=True)
            training.fit(verbose=verbose)
            del training
            # Graphs and variables refer to each other.
            gc.collect()
            self._show_table()
        if not trained:
            self._show_table()
        found = {row.name: self._metrics(row) for row in find_rows(self.table)}
        return {name: metrics for name, metrics in found.items() if metrics is not None}

    def trainer(self, row):
        """The `Trainer` of a `Row`, with the initial weights of the study."""
        return Trainer(
            row_config(row, self.base),
            *self.datasets,
            self.out / row.name,
            initial_weights=self.load_initial_weights,
            **self._training,
        )

    def load_initial_weights(self, detector):
        """Sets the variables of a row's detector to the study's initial weights.

        Raises:
            ValueError: there is no file, or it lacks a variable.
        """
        path = self.out / "initial_weights.npz"
        if not path.is_file():
            raise ValueError(
                "The study's initial weights must be in its folder. Without them rows "
                f"cannot be compared: start anew in another folder. Received: {path}"
            )
        variables = _variables(detector)
        with np.load(path, allow_pickle=False) as arrays:
            missing = sorted(set(variables) - set(arrays.files))
            if missing:
                raise ValueError(
                    f"{path} has no values for {len(missing)} variables of "
                    f"{detector.name}: {', '.join(missing[:5])}"
                )
            for key, variable in variables.items():
                variable.assign(arrays[key])

    def markdown(self):
        """Markdown of the paper's numbers beside the study's own, and `note`."""
        table = TABLES[self.table]
        heads = ["row", *table.columns, "AP", "AP50", "AP75"]
        heads += ["own AP", "own AP50", "own AP75"]
        lines = [f"{table.title}; published beside own, in percent.", ""]
        lines += ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
        for row in table.rows:
            own = self._own(row)
            cells = [row.name, *row.labels, *(f"{value:.1f}" for value in row.paper)]
            cells += ["-"] * 3 if own is None else [f"{value:.1f}" for value in own]
            lines.append("| " + " | ".join(cells) + " |")
        return "\n".join([*lines, "", self.note()])

    def note(self):
        """A sentence on whether the study's numbers compare with the paper's."""
        train, val = self.datasets
        reasons = []
        is_coco = train.class_names == COCO_CLASS_NAMES
        if not is_coco or len(train) < NUM_COCO_IMAGES:
            reasons.append(
                f"{len(train)} training and {len(val)} validation images of "
                f"{train.num_classes} classes, not COCO"
                + (" as a whole" if is_coco else "")
            )
        for text, value_of in (
            ("epochs {} instead of {}", lambda c: c.training.epochs),
            ("{} instead of {}", lambda c: c.model.backbone.name),
            (
                "images within {} instead of {}",
                lambda c: "x".join(map(str, c.data.image_size)),
            ),
            ("filters {} instead of {}", lambda c: c.model.head_filters),
            ("{} instead of {}", lambda c: c.training.optimizer),
            ("batch {} instead of {}", lambda c: c.training.batch_size),
        ):
            own, theirs = value_of(self.base), value_of(configs.Config())
            if own != theirs:
                reasons.append(text.format(own, theirs))
        if not self.is_pretrained:
            reasons.append("from scratch")
        seed = f"one seed ({self.base.training.seed})"
        if not reasons:
            return f"Own numbers: the paper's setting, {seed}."
        return (
            f"Own numbers are small-scale, not comparable with the paper's: "
            f"{', '.join(reasons)}; {seed}, so small differences mean nothing."
        )

    def _metrics(self, row):
        """The metrics of a row; None if it is not finished."""
        path = self.out / row.name / "metrics.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def _own(self, row):
        metrics = self._metrics(row)
        if metrics is None:
            return None
        return tuple(100 * (metrics[name] or 0.0) for name in ("AP", "AP50", "AP75"))

    def _show_table(self):
        """Prints the table and writes it to the study's folder."""
        table = TABLES[self.table]
        rows = [
            {
                "name": row.name,
                "labels": dict(zip(table.columns, row.labels, strict=True)),
                "paper": dict(zip(("AP", "AP50", "AP75"), row.paper, strict=True)),
                "own": self._metrics(row),
            }
            for row in table.rows
        ]
        content = {"title": table.title, "rows": rows, "note": self.note()}
        _write_json(self.out / f"{self.table}.json", content)
        path = self.out / f"{self.table}.md"
        _write(path, self.markdown() + "\n")
        print(f"\n{self.markdown()}\n\n{path}", flush=True)

    def _read(self):
        """The content of `study.json`; None for a new study."""
        path = self.out / "study.json"
        if not path.is_file():
            return None
        saved = json.loads(path.read_text(encoding="utf-8"))
        # Settings that an older version did not save are not compared; fields of the
        # config that it did not have get their defaults.
        old = {**self._settings, **saved["settings"]}
        old["base"] = configs.to_dict(configs.from_dict(old["base"]))
        changed = sorted(find_differences(old, self._settings))
        if changed:
            raise ValueError(
                f"{self.out} holds a study with other settings: {'; '.join(changed)}. "
                "Give another directory, or the same settings to go on with it. "
                f"Received: out={self.out}"
            )
        return saved

    def _begin(self, base, weights):
        """Saves the initial weights of all rows of the table, and the settings.

        A variable of several rows gets the value of the first.

        Returns:
            The content of `study.json`, a dict of JSON types.
        """
        arrays, paths, backbone = {}, [], None
        for row in TABLES[self.table].rows:
            keras.utils.set_random_seed(base.training.seed)
            config = configs.override(
                row_config(row, base), model__num_classes=self.datasets[0].num_classes
            )
            detector = builder.build_detector(config)
            if callable(weights):
                weights(detector)
            elif weights is not None:
                detector.load_weights(weights)
            variables = _variables(detector)
            paths.append(set(variables))
            for key, variable in variables.items():
                if key not in arrays:
                    arrays[key] = keras.ops.convert_to_numpy(variable)
            if backbone is None:
                backbone = without_weight_file(base, detector.backbone).model.backbone
        self.out.mkdir(parents=True, exist_ok=True)
        path = self.out / "initial_weights.npz"
        with replacing(path) as aside:
            np.savez(aside, **arrays)
        common = set.intersection(*paths)
        print(
            f"initial    {len(arrays)} variables of {len(paths)} rows, {len(common)} of "
            f"them in every row: {path}"
        )
        has_file = base.model.backbone.weights is not None
        content = {
            "settings": self._settings,
            "backbone": configs.to_dict(backbone),
            "is_pretrained": weights is not None or has_file,
        }
        # Written last: without it the study counts as new.
        _write_json(self.out / "study.json", content)
        return content


def _variables(detector):
    """Dict of a detector's variables by path, without the detector's name, and shape."""
    found = {}
    for variable in detector.weights:
        path = variable.path.removeprefix(f"{detector.name}/")
        key = f"{path}:{'x'.join(map(str, variable.shape))}"
        if key in found:
            raise ValueError(
                "Variables must have different paths, to be told apart in another row. "
                f"Received: {key} twice in {detector.name}"
            )
        found[key] = variable
    return found


def _fingerprint(dataset):
    """A dict of JSON types that identifies a dataset by its content."""
    digest = hashlib.sha256()
    for record in dataset.records:
        digest.update(f"{record.image_id} {record.height} {record.width}".encode())
        digest.update(np.asarray(record.boxes, "float32").tobytes())
        digest.update(np.asarray(record.labels, "int32").tobytes())
    return {
        "images": len(dataset),
        "classes": list(dataset.class_names),
        "sha256": digest.hexdigest()[:16],
    }


def _write_json(path, content):
    _write(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _write(path, text):
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")
