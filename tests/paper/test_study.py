import contextlib
import io
import json

import keras
import numpy as np
import pytest

from tests.contracts import assert_same_bits, to_numpy
from vfnet_tf import builder
from vfnet_tf.config import (
    BackboneConfig,
    Config,
    DataConfig,
    ModelConfig,
    TrainingConfig,
    load_config,
    override,
)
from vfnet_tf.data.formats.coco import find_coco_splits, read_coco
from vfnet_tf.data.synthetic import make_synthetic_dataset
from vfnet_tf.paper import study
from vfnet_tf.paper.study import Study, find_rows, row_config

BASE = Config(
    name="tiny",
    model=ModelConfig(
        backbone=BackboneConfig("resnet18", norm="batch_norm", frozen_stages=-1),
        num_classes=4,
        neck_filters=32,
        head_filters=32,
        head_convs=1,
    ),
    data=DataConfig(image_size=(32, 64), cache_decoded=True),
    training=TrainingConfig(
        epochs=1, batch_size=4, warmup_steps=2, drop_epochs=(), seed=7
    ),
)

# The lines of the paper's tables.
PAPER = {
    "table2": """
1.0 0.50 ✓ 41.2 59.2 44.7
1.5 0.75 ✓ 41.5 59.7 45.1
2.0 0.75 ✓ 41.6 59.5 45.0
2.0 0.75   41.2 59.1 44.4
2.5 1.25 ✓ 41.5 59.4 45.2
3.0 1.00 ✓ 41.3 59.0 44.7
""",
    "table3": """
raw VFNet       39.0 57.7 41.8
raw VFNet ✓     40.1 58.5 43.4
VFNet     ✓ ✓   40.7 59.0 44.0
VFNet     ✓ ✓ ✓ 41.6 59.5 45.0
FCOS+ATSS       39.2 57.3 42.4
""",
    "table5": """
RetinaNet FL  36.5 55.5 38.8
RetinaNet GFL 37.3 56.4 40.0
RetinaNet VFL 37.4 56.5 40.2
FoveaBox  FL  36.3 56.3 38.3
FoveaBox  GFL 36.9 56.0 39.7
FoveaBox  VFL 37.2 56.2 39.8
RepPoints FL  38.3 59.2 41.1
RepPoints GFL 39.2 59.8 42.5
RepPoints VFL 39.7 59.8 43.1
ATSS      FL  39.3 57.5 42.5
ATSS      GFL 39.8 57.7 43.2
ATSS      VFL 40.2 58.2 44.0
VFNet     FL  40.0 58.0 43.2
VFNet     GFL 41.1 58.9 42.2
VFNet     VFL 41.6 59.5 45.0
""",
}
ROWS = [
    pytest.param(table, row, id=f"{table}-{row.name}")
    for table in PAPER
    for row in find_rows(table)
]


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    directory = make_synthetic_dataset(
        tmp_path_factory.mktemp("data") / "set", 8, 4, image_size=(64, 96)
    )
    splits = find_coco_splits(directory)
    return read_coco(*splits["train"]), read_coco(*splits["val"], training=False)


@pytest.fixture(scope="module")
def table3(datasets, tmp_path_factory):
    """A study whose rows nobody has trained."""
    out = tmp_path_factory.mktemp("studies") / "table3"
    return Study("table3", BASE, *datasets, out, settings={"weights": None})


@pytest.fixture(scope="module")
def finished(datasets, tmp_path_factory):
    """A study with one row, stopped and resumed: arguments, metrics and output."""

    def stop(epoch, logs):
        raise KeyboardInterrupt

    out = tmp_path_factory.mktemp("studies") / "finished"
    base = override(BASE, training__epochs=2)
    arguments = ("table3", base, *datasets, out, ("raw",))
    own = Study(*arguments, evaluate_every=2)
    callback = keras.callbacks.LambdaCallback(on_epoch_end=stop)
    with pytest.raises(KeyboardInterrupt):
        own.trainer(own.rows[0]).fit(verbose=0, callbacks=[callback])
    assert own.markdown().count("- | - | - |") == 5
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        metrics = Study(*arguments, evaluate_every=2).run(verbose=0)
    return arguments, metrics, said.getvalue()


@pytest.mark.parametrize("table", sorted(PAPER))
def test_the_rows_are_those_of_the_paper(table):
    rows = [" ".join([*row.labels, *map(str, row.paper)]) for row in find_rows(table)]
    paper = PAPER[table].strip().splitlines()
    assert [row.split() for row in rows] == [line.split() for line in paper]


@pytest.mark.parametrize(("table", "row"), ROWS)
def test_a_row_trains_what_its_labels_say(table, row):
    model = row_config(row, BASE).model
    if table == "table2":
        gamma, alpha, weighted = row.labels
        assert (model.loss_gamma, model.loss_alpha) == (float(gamma), float(alpha))
        assert model.iou_weighted == bool(weighted)
        assert (model.detector, model.class_loss) == ("vfnet", "varifocal")
    if table == "table3":
        method, varifocal, star, refinement = row.labels
        assert model.class_loss == ("varifocal" if varifocal else "focal")
        if method == "FCOS+ATSS":
            assert (model.detector, model.assigner) == ("fcos", "atss")
        else:
            switches = ("vfnet", bool(star), bool(refinement))
            assert (model.detector, model.star, model.refine) == switches
    if table == "table5":
        method, loss = row.labels
        losses = {"FL": "focal", "GFL": "quality_focal", "VFL": "varifocal"}
        assert (model.detector, model.class_loss) == (method.lower(), losses[loss])


@pytest.mark.parametrize(("table", "row"), ROWS)
def test_nothing_that_a_row_s_config_says_is_lost(table, row):
    own = load_config(row.config)
    # On a base like the paper's all that the row's config says is there.
    config = row_config(row, Config())
    model = override(own.model, **row.changes)
    assert (config.model, config.training) == (model, own.training)


def test_the_rest_is_the_base_s():
    row = find_rows("table5", ["foveabox_focal"])[0]
    config = row_config(row, BASE)
    assert config.model.focal_alpha == 0.4
    assert config.model.nms_iou_threshold == 0.5
    assert config.model.head_convs == 2  # one more than VFNet, as in the paper
    assert config.model.head_filters == 32
    assert config.model.backbone == BASE.model.backbone
    assert config.data == BASE.data
    assert config.training.bias_lr_multiplier == 1.0
    multipliers = {"bias_lr_multiplier": 2.0, "bias_decay_multiplier": 0.0}
    assert override(config.training, **multipliers) == BASE.training
    adamw = override(BASE, training__optimizer="adamw")
    assert row_config(row, adamw).training == adamw.training


def test_a_base_of_another_detector_does_not_change_the_rows():
    base = override(load_config("vfl_atss_r50_fpn_1x_coco"), model__head_convs=3)
    row = find_rows("table3", ["vfnet"])[0]
    assert row_config(row, base).model == ModelConfig()


# Each row is built: 10 s a table.
@pytest.mark.parametrize(
    "table",
    [
        "table3",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("table2", "table5")),
    ],
)
def test_all_rows_of_a_table_build_and_their_initial_weights_are_kept(
    table, datasets, tmp_path
):
    own = Study(table, BASE, *datasets, tmp_path / "study")
    saved = np.load(tmp_path / "study" / "initial_weights.npz")
    detector = builder.build_detector(
        override(row_config(own.rows[-1], BASE), model__num_classes=4)
    )
    own.load_initial_weights(detector)
    for key, variable in study._variables(detector).items():
        np.testing.assert_array_equal(to_numpy(variable), saved[key])
    content = json.loads((tmp_path / "study" / "study.json").read_text())
    assert content["settings"]["table"] == table


def test_variables_that_two_rows_have_in_common_start_equal(table3):
    rows = find_rows("table3", ["raw", "vfnet", "fcos_atss"])
    trainers = [table3.trainer(row) for row in rows]
    raw, vfnet, fcos = [study._variables(own.detector) for own in trainers]
    tower = "head/box_tower/conv0/conv/kernel:3x3x32x32"
    predictor = "head/class_predictor/conv/kernel:3x3x32x4"
    assert {tower, predictor, "fpn/output_P3/conv/kernel:3x3x32x32"} <= set(vfnet)
    assert {tower, predictor, "conv1/conv/kernel:7x7x3x64"} <= set(fcos)
    for others in (raw, vfnet):
        common = set(others) & set(fcos)
        assert len(common) > 120
        for key in common:
            np.testing.assert_array_equal(to_numpy(others[key]), to_numpy(fcos[key]))
    # They are random values and not, say, zeros.
    assert np.std(to_numpy(fcos[tower])) > 0.005


def test_all_rows_see_the_same_images_in_the_same_order(table3, datasets, tmp_path):
    def first_epoch(own, name):
        batches = own.trainer(find_rows("table3", [name])[0]).train_batches
        return [(b["image_id"].numpy(), b["images"].numpy()) for b in batches]

    raw = first_epoch(table3, "raw")
    assert_same_bits(first_epoch(table3, "fcos_atss"), raw)
    seed = override(BASE, training__seed=8)
    other = Study("table3", seed, *datasets, tmp_path / "study")
    with pytest.raises(AssertionError):
        assert_same_bits(first_epoch(other, "raw"), raw)


def test_given_weights_are_those_of_all_rows_also_when_they_are_gone(
    datasets, tmp_path
):
    frozen = BackboneConfig("resnet18")

    def load(detector):
        calls.append(detector.name)
        for variable in detector.backbone.weights:
            variable.assign(variable * 0 + 0.25)

    def start(base):
        return override(base, model__backbone=frozen), load

    def refuse(base):
        raise AssertionError("the weights are those of the study's folder")

    calls = []
    scratch = override(BASE, model__backbone__norm="batch_norm")
    arguments = ("table3", scratch, *datasets, tmp_path / "study")
    first = Study(*arguments, start=start)
    assert calls == ["vfnet"] * 4 + ["fcos"]
    again = Study(*arguments, start=refuse)
    assert first.base == again.base == override(scratch, model__backbone=frozen)
    assert again.is_pretrained and "from scratch" not in again.note()
    detector = again.trainer(again.rows[-1]).detector
    for variable in detector.backbone.weights:
        np.testing.assert_array_equal(to_numpy(variable), 0.25)


def test_paths_of_a_keras_backbone_are_the_same_in_every_detector():
    keys = []
    for name in ("vfnet", "atss"):
        config = override(
            BASE, model__backbone__name="keras:ResNet50", model__detector=name
        )
        variables = study._variables(builder.build_detector(config))
        keys.append({key for key in variables if not key.startswith(("head", "fpn"))})
    assert keys[0] == keys[1] and len(keys[0]) > 250


def test_a_study_leaves_the_rows_runs_and_the_table(finished):
    (*_, out, rows), metrics, _ = finished
    assert tuple(metrics) == rows == ("raw",)
    assert (out / "raw" / "best.weights.h5").exists()
    assert not (out / "raw" / "saved_model").exists()
    saved = json.loads((out / "raw" / "metrics.json").read_text())
    assert saved["AP"] == metrics["raw"]["AP"]
    text = (out / "table3.md").read_text(encoding="utf-8")
    assert "| raw | raw VFNet |  |  |  | 39.0 | 57.7 | 41.8 |" in text
    assert "| vfnet | VFNet | ✓ | ✓ | ✓ | 41.6 | 59.5 | 45.0 | - | - | - |" in text
    own = 100 * metrics["raw"]["AP50"]
    line = next(line for line in text.splitlines() if line.startswith("| raw |"))
    assert line.split("|")[-3].strip() == f"{own:.1f}"
    last = text.strip().splitlines()[-1]
    for reason in ("small-scale", "8 training", "not COCO", "epochs 2", "from scratch"):
        assert reason in last
    rows = json.loads((out / "table3.json").read_text(encoding="utf-8"))["rows"]
    assert [row["own"] is not None for row in rows] == [True, *[False] * 4]
    assert rows[4]["paper"] == {"AP": 39.2, "AP50": 57.3, "AP75": 42.4}


def test_a_finished_row_is_not_trained_again(finished, monkeypatch, capsys):
    arguments, metrics, _ = finished

    def refuse(*arguments, **settings):
        raise AssertionError("trained again")

    monkeypatch.setattr(study, "Trainer", refuse)
    again = Study(*arguments, evaluate_every=2)
    assert again.run(verbose=0).keys() == metrics.keys()
    said = capsys.readouterr().out
    assert "raw is finished already" in said
    assert said.count("| raw |") == 1  # the table, too


def test_a_stopped_row_goes_on(finished):
    said = finished[2]
    assert "row 1 of 1: raw" in said and "resuming after epoch 1 of 2" in said
    assert "finished already" not in said
    assert said.count("| star |") == 1  # the table


def test_other_settings_in_the_same_folder_are_refused(table3, datasets):
    def study_of(table="table3", base=BASE, data=datasets, **settings):
        settings = {"settings": {"weights": None}, **settings}
        return Study(table, base, *data, table3.out, **settings)

    assert study_of().base == table3.base
    for message, changes in (
        ("base.training.seed: 7 -> 8", {"base": override(BASE, training__seed=8)}),
        ("table: table3 -> table2", {"table": "table2"}),
        ("weights: None -> imagenet", {"settings": {"weights": "imagenet"}}),
        ("train.images: 8 -> 4", {"data": (datasets[0].subset(4), datasets[1])}),
        ("evaluate_every: 1 -> 2", {"evaluate_every": 2}),
    ):
        with pytest.raises(ValueError, match=message):
            study_of(**changes)


def test_initial_weights_that_are_missing_are_told(datasets, tmp_path):
    own = Study("table3", BASE, *datasets, tmp_path / "study")
    narrow = override(BASE, model__head_filters=64)
    with pytest.raises(ValueError, match="no values for .* variables of vfnet: head/"):
        own.load_initial_weights(builder.build_detector(narrow))
    (tmp_path / "study" / "initial_weights.npz").unlink()
    with pytest.raises(ValueError, match="start anew in another folder"):
        own.trainer(own.rows[0])


def test_unknown_names_and_missing_validation_are_refused(datasets, tmp_path):
    with pytest.raises(
        ValueError, match="among raw, raw_vfl, star.*Received: nonsense"
    ):
        find_rows("table3", ["raw", "nonsense"])
    with pytest.raises(ValueError, match="table5.*Received: table4"):
        find_rows("table4")
    with pytest.raises(ValueError, match="must have a validation split"):
        Study("table3", BASE, datasets[0], None, tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_the_paper_s_setting_is_not_called_small_scale(table3, monkeypatch):
    class Coco:
        class_names = study.COCO_CLASS_NAMES

        def __len__(self):
            return study.NUM_COCO_IMAGES

    monkeypatch.setattr(table3, "datasets", (Coco(), Coco()))
    monkeypatch.setattr(table3, "base", Config())
    monkeypatch.setattr(table3, "is_pretrained", True)
    assert table3.note() == "Own numbers: the paper's setting, one seed (0)."
    monkeypatch.setattr(table3, "base", override(Config(), training__epochs=24))
    assert "epochs 24 instead of 12" in table3.note()
