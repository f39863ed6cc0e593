import importlib
import shlex
import sys
import types

import numpy as np
import pytest

from tests.contracts import to_numpy
from vfnet_tf.backbones import ResNet
from vfnet_tf.builder import build_detector
from vfnet_tf.checkpoints.names import backbone_variables
from vfnet_tf.checkpoints.pytorch import to_pytorch_state_dict
from vfnet_tf.checkpoints.tensors import to_pytorch_layout
from vfnet_tf.cli import train
from vfnet_tf.cli.__main__ import COMMANDS, _parse, main
from vfnet_tf.config import load_config, override, save_config
from vfnet_tf.training import initial_weights, strategies, time_budget
from vfnet_tf.training.preemption import PreemptedError

CONFIG_FILE = """
from vfnet_tf.config import *

config = Config(
    name="tiny_file",
    model=ModelConfig(
        backbone=BackboneConfig("resnet18", norm="batch_norm", frozen_stages=-1),
        neck_filters=32, head_filters=32, head_convs=1,
    ),
    data=DataConfig(image_size=(64, 96), cache_decoded=True),
    training=TrainingConfig(epochs=2, batch_size=4, warmup_steps=2, drop_epochs=(1,)),
)
"""


@pytest.fixture
def data(tmp_path):
    """A folder with a config file and a small set."""
    from vfnet_tf.data.synthetic import make_synthetic_dataset

    (tmp_path / "tiny.py").write_text(CONFIG_FILE, encoding="utf-8")
    make_synthetic_dataset(tmp_path / "set", 8, 4, image_size=(96, 128))
    return tmp_path


def options_of(data, *more):
    config, folder, out = (str(data / name) for name in ("tiny.py", "set", "run"))
    return ["--config", config, "--data", folder, "--out", out, *more]


def test_training_ends_with_a_saved_model_and_says_the_ap(data, capfd):
    status = main(["train", *options_of(data, "--epochs", "1")])
    said = capfd.readouterr().out
    assert status == 0
    assert (data / "run" / "saved_model" / "saved_model.pb").exists()
    for text in ("1 replica", "learning", "8 images", "class_loss", "AP50"):
        assert text in said
    # A bar that moves writes a kilobyte a step to a log file.
    assert "\b" not in said
    assert "\r" not in said


def test_time_fits_the_epochs_and_is_refused_where_it_cannot(data, capfd):
    assert main(["train", *options_of(data, "--time", "30m", "--no-export")]) == 0
    said = capfd.readouterr().out
    # Four times the two epochs of the config at most: time is not there to be used up.
    assert "time       8 epochs: a step takes" in said
    assert load_config(data / "run").training.epochs == 8
    assert (data / "run" / "samples.png").stat().st_mtime > (
        data / "run" / "config.json"
    ).stat().st_mtime
    # The same command goes on with the run, here at its end.
    assert main(["train", *options_of(data, "--time", "30m", "--no-export")]) == 0
    assert "resuming after epoch 8 of 8" in capfd.readouterr().out
    options = options_of(data, "--time", "1s")
    options[-3] = str(data / "other")
    assert main(["train", *options]) == 2
    assert "One epoch of 2 steps takes about" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--time", "2 hours"], "must be like 2h, 90m"),
        (["--time", "2h", "--epochs", "3"], "--time chooses the epochs"),
        (["--time", "2h", "--strategy", "multi_worker"], "in one process"),
        (["--frozen-stages", "1", "--weights", "none"], "Random weights must learn"),
    ],
)
def test_settings_that_cannot_go_together_are_refused(data, mistake, more, said):
    assert said in mistake("train", *options_of(data, *more))


@pytest.mark.parametrize(
    "option, value, rule",
    [
        *(
            (option, "0", "a whole number from 1")
            for option in (
                "epochs",
                "batch-size",
                "accumulate-steps",
                "evaluate-every",
                "save-every",
                "limit",
                "patience",
                "cpu-replicas",
            )
        ),
        ("warmup-steps", "-1", "a whole number from 0"),
        ("keep-epochs", "-1", "a whole number from 0"),
        ("frozen-stages", "-2", "a whole number from -1"),
        ("seed", "-1", "from 0 to 2**32 - 1"),
        ("seed", "4294967296", "from 0 to 2**32 - 1"),
        ("learning-rate", "0.0", "above 0"),
        ("learning-rate", "inf", "above 0"),
        ("clip-norm", "nan", "above 0"),
        ("oversample", "10.0", "from 0 to 1"),
        ("oversample", "-1.0", "from 0 to 1"),
        ("oversample", "nan", "from 0 to 1"),
        ("ema", "1.0", "at least 0 and below 1"),
        ("ema", "nan", "at least 0 and below 1"),
        ("image-size", "0 64", "two whole numbers from 1"),
        ("image-size", "96 64", "the short side, then the long one"),
    ],
)
def test_a_number_out_of_range_is_refused_by_its_option_before_data_are_read(
    mistake, option, value, rule
):
    error = mistake("train", "--data", "absent", f"--{option}", *value.split())
    assert f"--{option} must be {rule}. Received: --{option} {value}\n" in error


@pytest.mark.parametrize(
    "more, said",
    [
        (["--batch-size", "3"], "multiple of the 2 replicas"),
        (["--accumulate-steps", "2"], "on one device only"),
        (["--precision", "mixed_float16"], "not safe over replicas"),
    ],
)
def test_what_replicas_cannot_do_is_refused_before_data_are_read(
    mistake, monkeypatch, more, said
):
    two = strategies.make_strategy("mirrored", ["CPU:0", "CPU:1"])
    monkeypatch.setattr(strategies, "make_strategy", lambda *arguments: two)
    assert said in mistake("train", "--data", "absent", *more)


def test_the_recipe_is_for_published_configs_and_stays_when_a_run_goes_on(
    data, capsys, monkeypatch
):
    from vfnet_tf.training import trainer

    class Stop(Exception):
        pass

    def note(config, *arguments, **settings):
        seen.append((config, settings["evaluate_every"]))
        raise Stop

    def start(*more):
        with pytest.raises(Stop):
            main(["train", "--weights", "none", *more])
        return capsys.readouterr().out

    seen = []
    monkeypatch.setattr(trainer, "Trainer", note)
    own = ["--data", str(data / "set"), "--out", str(data / "run")]
    assert "recipe     that of the config" in start(*own, "--config", f"{data}/tiny.py")
    assert "rate  " in start(*own, "--backbone", "resnet18", "--ema", "0")
    said = start(*own, "--backbone", "resnet18")
    assert "size       320x" in said and "(--warmup-steps)" in said
    (config, every), (without, _), (fitted, fitted_every) = seen
    assert f"evaluation every {fitted_every} epochs" in said and "(--cache)" in said
    assert (config.training.schedule, every) == ("step", 1)
    assert (without.training.ema_momentum, fitted.training.schedule) == (None, "cosine")
    assert fitted.training.ema_momentum > 0 and fitted_every > 1
    # The machine or the recipe may change; the run does not.
    earlier = override(fitted, training__warmup_steps=3)
    (data / "run").mkdir()
    save_config(earlier, data / "run" / "config.json")
    (data / "run" / "last.weights.h5").touch()
    assert "that of the run in" in start(*own, "--backbone", "resnet18")
    assert seen[-1][0] == earlier
    start(*own, "--backbone", "resnet18", "--epochs", "5", "--cache", "none")
    assert seen[-1][0].training.epochs == 5
    assert not seen[-1][0].data.cache_decoded


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [1, 2, 10]),
        ({"recipe": "paper"}, [1, 1, 1]),
        ({"config": "vfnet_r50_synthetic"}, [1, 1, 1]),
        ({"data": None}, [1, 1, 1]),
        ({"evaluate_every": 5}, [5, 5, 5]),
    ],
    ids=str,
)
def test_the_plan_for_a_time_and_the_training_evaluate_as_often(
    changes, expected, monkeypatch
):
    options = train.TrainOptions(**{"data": "set", **changes})
    intervals = [train._evaluation_interval(options, each) for each in (12, 24, 120)]
    assert intervals == expected
    seen = {}
    monkeypatch.setattr(
        time_budget, "epochs_within", lambda *arguments, **more: seen.update(more)
    )
    timing = time_budget.Timing(1.0, 1.0, 1.0)
    monkeypatch.setattr(time_budget, "measure", lambda training: timing)
    training = types.SimpleNamespace(
        steps_per_epoch=3,
        config=load_config("vfnet_r50_fpn_1x_coco"),
        closing_evaluations=2,
    )
    train._epochs_until(0.0, training, options)
    assert [seen["interval"](each) for each in (12, 24, 120)] == expected
    assert seen["closing"] == 2


@pytest.mark.parametrize(
    ("changes", "is_evaluated", "expected"),
    [
        (
            {"data": "my set", "skip_bad_images": True},
            True,
            ["evaluate --data 'my set' --skip-bad-images --checkpoint r --report"],
        ),
        ({"data": "set", "overfit": True}, True, ["evaluate --data set --split train"]),
        ({}, True, ["evaluate --checkpoint r --report report.html"]),
        # There is nothing to evaluate on.
        ({"data": "set"}, False, []),
        ({"strategy": "data_parallel"}, False, []),
    ],
    ids=str,
)
def test_the_next_commands_are_such_that_work(changes, is_evaluated, expected):
    text = train._next_steps(train.TrainOptions(**changes), "r", is_evaluated)
    _, *lines = text.splitlines()
    backend = ""
    if "strategy" in changes:
        backend = "KERAS_BACKEND=tensorflow "
    expected = [
        *expected,
        "predict IMAGES --checkpoint r --out found",
        "export r --serving models",
    ]
    assert len(lines) == len(expected)
    for line, start in zip(lines, expected, strict=True):
        words = [word for word in shlex.split(line) if "=" not in word]
        assert line.startswith(f"  {backend * ('export' in line)}vfnet {start}")
        module = importlib.import_module(COMMANDS[words[1]][0])
        _parse(module.OPTIONS, words[2:])  # would exit


def test_several_workers_need_a_cluster(data, monkeypatch, mistake):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    error = mistake("train", *options_of(data, "--strategy", "multi_worker"))
    assert "TF_CONFIG must list the workers" in error


def test_options_change_the_config(data):
    options = train.TrainOptions(
        config=str(data / "tiny.py"),
        backbone="keras:ResNet50",
        epochs=4,
        batch_size=2,
        image_size=(32, 64),
        learning_rate=0.002,
        optimizer="adamw",
        precision="mixed_bfloat16",
        seed=3,
        scale_learning_rate=False,
        accumulate_steps=4,
        clip_norm=35.0,
        ema=0.999,
    )
    config = train.resolve(options)
    training = config.training
    assert (training.scale_learning_rate, training.accumulate_steps) == (False, 4)
    assert (training.clip_norm, training.ema_momentum) == (35.0, 0.999)
    assert config.model.backbone.name == "keras:ResNet50"
    assert config.data.normalization.channel_order == "bgr"
    assert config.data.image_size == (32, 64)
    assert (training.batch_size, training.seed) == (2, 3)
    assert training.drop_epochs == (2.0,)  # half of the way, as in the file
    assert (training.base_learning_rate, training.optimizer) == (0.002, "adamw")
    assert training.precision == "mixed_bfloat16"


def test_a_size_takes_the_place_of_the_scales_that_a_config_draws():
    name = "vfnet_r50_fpn_mstrain_2x_coco"
    assert train.resolve(train.TrainOptions(config=name)).data.scale_range
    data = train.resolve(train.TrainOptions(config=name, image_size=(320, 416))).data
    assert (data.image_size, data.scale_range, data.scales) == ((320, 416), (), ())


def test_loss_and_assigner_are_swapped_by_one_option(data, monkeypatch):
    from vfnet_tf.training import trainer

    class Stop(Exception):
        pass

    def note(config, *arguments, **settings):
        seen.append(config.model)
        raise Stop

    seen = []
    monkeypatch.setattr(trainer, "Trainer", note)
    for more in (["--class-loss", "quality_focal", "--assigner", "fcos"], []):
        with pytest.raises(Stop):
            main(["train", *options_of(data, *more)])
    assert (seen[0].class_loss, seen[0].assigner) == ("quality_focal", "fcos")
    assert (seen[1].class_loss, seen[1].assigner) == ("varifocal", None)


@pytest.fixture
def hub(monkeypatch):
    """A hub that holds `files` (repository to path or error) and counts the calls."""
    module = types.ModuleType("huggingface_hub")
    module.files, module.calls = {}, 0

    def download(repo_id, filename):
        module.calls += 1
        found = module.files.get(repo_id, ConnectionError("no network"))
        if isinstance(found, Exception):
            raise found
        return str(found)

    module.hf_hub_download = download
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    monkeypatch.setenv("VFNET_OFFLINE", "0")
    return module


@pytest.fixture(scope="module")
def backbone_file(tmp_path_factory):
    """ResNet-18 by torchvision's names, as timm publishes it; its first norm is 0.25."""
    numpy_files = pytest.importorskip("safetensors.numpy")
    tensors = {
        name: to_pytorch_layout(to_numpy(variable)).copy()
        for name, variable in backbone_variables(ResNet(18)).items()
    }
    tensors["bn1.weight"] += -0.75
    tensors["fc.weight"] = np.zeros((1000, 512), "float32")
    tensors["fc.bias"] = np.zeros(1000, "float32")
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    numpy_files.save_file(tensors, path)
    return path


def with_weights(data, weights, norm="frozen_batch_norm", run_dir="run"):
    """`with_weights` for the small config with that norm."""
    options = train.TrainOptions(config=str(data / "tiny.py"), weights=weights)
    config = train.resolve(options)
    frozen = 1 if norm == "frozen_batch_norm" else -1
    config = override(
        config, model__backbone__norm=norm, model__backbone__frozen_stages=frozen
    )
    start = initial_weights.with_weights(config, options.weights, data / run_dir)
    return config, start.config, start.weights


def first_norm(load, config):
    """The scale of the first norm after `load`, from a new detector."""
    detector = build_detector(config)
    load(detector)
    return to_numpy(backbone_variables(detector.backbone)["bn1.weight"])


def test_imagenet_by_name_is_an_error_where_it_cannot_be_had(data, hub, capfd):
    status = main(["train", *options_of(data, "--weights", "imagenet")])
    assert status == 2
    error = capfd.readouterr().err
    assert "--weights imagenet" in error and "the hub cannot be reached" in error
    assert "--weights none" in error and hub.calls == 1


@pytest.mark.parametrize("weights", [None, "imagenet"])
def test_imagenet_weights_are_taken_where_they_can_be_had(
    data, hub, backbone_file, weights, capsys
):
    hub.files["timm/resnet18.tv_in1k"] = backbone_file
    before, config, load = with_weights(data, weights)
    assert config == before
    assert "ImageNet, timm/resnet18.tv_in1k" in capsys.readouterr().out
    np.testing.assert_array_equal(first_norm(load, config), 0.25)


def test_without_imagenet_weights_training_starts_from_scratch(data, hub, capsys):
    _, config, load = with_weights(data, None)
    assert load is None
    assert config.model.backbone.norm == "batch_norm"
    assert config.model.backbone.frozen_stages == -1
    said = capsys.readouterr().out
    assert "cannot be reached" in said and "from scratch" in said


def test_a_config_for_scratch_asks_no_network(data, hub, capsys):
    before, config, load = with_weights(data, None, norm="batch_norm")
    assert (config, load) == (before, None)
    assert hub.calls == 0
    assert "weights    none: the config is for training" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "backbone"),
    [
        ("train", "resnet18"),
        ("train", "keras:MobileNet"),
        ("study table3 --rows vfnet", "resnet18"),
    ],
)
def test_generated_images_ask_no_network(
    data, hub, keras_download, monkeypatch, capsys, command, backbone
):
    from vfnet_tf.data import synthetic
    from vfnet_tf.paper import study
    from vfnet_tf.training import trainer

    class Stop(Exception):
        pass

    def stop(config, *_, **settings):
        assert config.model.backbone.norm == "batch_norm"
        assert command != "train" or settings["initial_weights"] is None
        raise Stop

    for module in (trainer, study):
        monkeypatch.setattr(module, "Trainer", stop)
    monkeypatch.setattr(synthetic, "make_synthetic_dataset", lambda: data / "set")
    words = [*command.split(), "--config", "vfnet_r50_fpn_1x_coco"]
    words += ["--backbone", backbone, "--out", str(data / "run")]
    with pytest.raises(Stop):
        main(words)
    assert "weights    none: generated images need no net" in capsys.readouterr().out
    assert (hub.calls, keras_download.calls) == (0, 0)
    # What is asked for is fetched.
    if backbone == "resnet18":
        with pytest.raises(ValueError, match="hub cannot be reached"):
            initial_weights.with_weights(
                load_config("vfnet_r50_fpn_1x_coco"),
                "imagenet",
                data,
                is_generated=True,
            )


def test_a_resumed_run_neither_asks_nor_changes(data, hub, capsys):
    from vfnet_tf.config import save_config

    scratch = override(with_weights(data, "none")[1], training__seed=3)
    (data / "run").mkdir()
    save_config(scratch, data / "run" / "config.json")
    (data / "run" / "last.weights.h5").touch()
    # Now the weights could be had, but the run began without.
    _, config, load = with_weights(data, None)
    assert load is None
    assert config.model.backbone == scratch.model.backbone
    before, config, load = with_weights(data, "imagenet")
    assert (config, load) == (before, None)
    assert hub.calls == 0
    assert "those of the run in" in capsys.readouterr().out


def test_a_backbone_file_is_taken(data, backbone_file, capsys):
    before, config, load = with_weights(data, str(backbone_file))
    assert config == before
    assert "a backbone" in capsys.readouterr().out
    np.testing.assert_array_equal(first_norm(load, config), 0.25)


def test_a_detector_file_is_taken_but_for_other_classes(data, tmp_path, capsys):
    torch = pytest.importorskip("torch")
    _, config, _ = with_weights(data, "none")
    state = to_pytorch_state_dict(build_detector(config))
    state["backbone.bn1.weight"][:] = 0.25
    path = tmp_path / "official.pth"
    torch.save({"state_dict": {n: torch.tensor(t) for n, t in state.items()}}, path)
    _, config, load = with_weights(data, str(path))
    assert "a whole detector" in capsys.readouterr().out
    config = override(config, model__num_classes=4)
    with pytest.warns(UserWarning, match="all is loaded but the classifier"):
        np.testing.assert_array_equal(first_norm(load, config), 0.25)


def test_files_of_pytorch_are_not_for_keras_backbones(data, backbone_file):
    options = train.TrainOptions(
        config=str(data / "tiny.py"),
        backbone="keras:ResNet50",
        weights=str(backbone_file),
    )
    with pytest.raises(ValueError, match=r"kerashub: backbone\. Received"):
        initial_weights.with_weights(
            train.resolve(options), options.weights, data / "run"
        )


def foreign_weights(data, backbone, weights, run_dir="run"):
    """`with_weights` for a backbone of keras.applications or KerasHub."""
    from vfnet_tf.config import Config

    options = train.TrainOptions(backbone=backbone, weights=weights)
    config = override(
        Config(),
        model__backbone__name=backbone,
        model__backbone__trainable_norms="auto",
    )
    start = initial_weights.with_weights(config, options.weights, data / run_dir)
    return config, start.config, start.weights


@pytest.fixture
def keras_download(monkeypatch):
    """What `keras.applications.MobileNet` does when it is asked for ImageNet weights."""
    import keras

    def make(weights, include_top):
        assert (weights, include_top) == ("imagenet", False)
        make.calls += 1
        if make.error is not None:
            raise make.error

    make.calls, make.error = 0, None
    monkeypatch.setattr(keras.applications, "MobileNet", make)
    monkeypatch.setenv("VFNET_OFFLINE", "0")
    return make


@pytest.mark.parametrize("weights", [None, "imagenet"])
def test_imagenet_weights_of_keras_applications_are_its_own(
    data, keras_download, weights, capsys
):
    _, config, load = foreign_weights(data, "keras:MobileNet", weights)
    assert (config.model.backbone.weights, load) == ("pretrained", None)
    assert config.model.backbone.norm == "frozen_batch_norm"
    assert keras_download.calls == 1
    assert "those of keras.applications" in capsys.readouterr().out


def test_without_a_network_keras_applications_start_from_scratch_or_fail(
    data, keras_download, capsys
):
    keras_download.error = Exception("URL fetch failure")
    _, config, load = foreign_weights(data, "keras:MobileNet", None)
    backbone = config.model.backbone
    assert (backbone.weights, backbone.norm, load) == (None, "batch_norm", None)
    said = capsys.readouterr().out
    assert "URL fetch failure" in said and "from scratch" in said
    with pytest.raises(ValueError, match="--weights imagenet: .*URL fetch failure"):
        foreign_weights(data, "keras:MobileNet", "imagenet")


def test_a_preset_brings_its_own_weights(data, capsys):
    _, config, load = foreign_weights(data, "kerashub:DIR", None)
    assert (config.model.backbone.weights, load) == ("pretrained", None)
    assert "those of the preset" in capsys.readouterr().out
    with pytest.raises(ValueError, match="bring their own weights.*kerashub:DIR"):
        foreign_weights(data, "kerashub:DIR", "imagenet")
    _, config, _ = foreign_weights(data, "kerashub:DIR", "none")
    backbone = config.model.backbone
    assert (backbone.weights, backbone.norm) == (None, "batch_norm")


def test_a_file_of_a_keras_model_is_told_from_one_of_a_detector(data):
    h5py = pytest.importorskip("h5py")
    for name, group in (("model", "layers"), ("detector", "head")):
        with h5py.File(data / f"{name}.weights.h5", "w") as file:
            file.create_group(group)
    path = str(data / "model.weights.h5")
    _, config, load = foreign_weights(data, "keras:MobileNet", path)
    assert (config.model.backbone.weights, load) == (path, None)
    path = data / "detector.weights.h5"
    _, config, load = foreign_weights(data, "keras:MobileNet", str(path))
    assert (config.model.backbone.weights, load) == (None, path)


def test_a_resumed_run_of_a_foreign_backbone_keeps_what_it_began_with(
    data, keras_download
):
    from vfnet_tf.config import save_config

    scratch = foreign_weights(data, "keras:MobileNet", "none")[1]
    (data / "run").mkdir()
    save_config(scratch, data / "run" / "config.json")
    (data / "run" / "last.weights.h5").touch()
    _, config, _ = foreign_weights(data, "keras:MobileNet", None)
    assert config.model.backbone == scratch.model.backbone
    assert keras_download.calls == 0


def test_missing_weights_and_data_are_named(data, capfd):
    assert main(["train", *options_of(data, "--weights", "nowhere.npz")]) == 2
    assert "nowhere.npz" in capfd.readouterr().err
    assert main(["train", "--data", str(data / "nothing")]) == 2
    assert "nothing" in capfd.readouterr().err


def test_a_training_stopped_by_a_signal_has_a_status_of_its_own(
    data, monkeypatch, capsys
):
    def stop(self, **arguments):
        assert self.save_every_steps == 7
        raise PreemptedError("SIGTERM: saved")

    monkeypatch.setattr("vfnet_tf.training.trainer.Trainer.fit", stop)
    assert main(["train", *options_of(data, "--save-every", "7")]) == 75
    assert "SIGTERM: saved" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "run_dir"),
    [
        (["train", "--data", "x", "--out", "a"], "a"),
        (["train", "--data", "x"], "runs/vfnet_r50_fpn_1x_coco"),
        (["study", "table3", "--out", "a"], "a/raw"),
        (["swa", "a", "--epochs", "1"], "a/swa"),
    ],
)
def test_a_signal_outside_of_the_steps_says_how_to_go_on(
    command, run_dir, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)

    def run(error):
        def stop(*arguments):
            raise error

        monkeypatch.setattr(strategies, "make_strategy", stop)
        monkeypatch.setattr("vfnet_tf.inference.load.find_checkpoint", stop)
        return main(command), capsys.readouterr().out.splitlines()[-1]

    again = "Ctrl-C: stopped. No state is saved: the same command starts again."
    assert run(KeyboardInterrupt()) == (130, again)
    state = tmp_path / run_dir / "last.weights.h5"
    state.parent.mkdir(parents=True)
    state.touch()
    on = f"Ctrl-C: stopped. The same command goes on from {run_dir}/last.weights.h5."
    assert run(KeyboardInterrupt()) == (130, on)
    for status, said in ((130, "SIGINT: saved"), (75, "SIGTERM: saved")):
        assert run(PreemptedError(said)) == (status, said)


def test_a_dry_run_of_yolo_data_says_all_and_leaves_nothing(data, capsys):
    pytest.importorskip("yaml", reason="needs PyYAML, the extra yolo")
    yolo = data / "yolo"
    convert = ["convert-data", str(data / "set"), "--to", "yolo", "--out", str(yolo)]
    assert main(convert) == 0
    arguments = options_of(data, "--dry-run")
    arguments[arguments.index(str(data / "set"))] = str(yolo / "data.yaml")
    assert main(["train", *arguments]) == 0
    said = capsys.readouterr().out
    assert f"format     YOLO txt, {yolo}/data.yaml: train, val\n" in said
    assert f"read from {yolo}/data.yaml (train): 8 images" in said
    assert f"read from {yolo}/data.yaml (val): 4 images" in said
    assert "model      tiny_file: VFNet" in said
    assert "in 8 images" in said and "by class" in said
    assert "batches        2 of 4 x 64 x 96 x 3" in said
    assert "memory     about 0." in said
    assert not (data / "run").exists()


@pytest.mark.parametrize("command", [["train"], ["study", "table3"], ["swa", "RUN"]])
def test_xla_over_replicas_is_refused_before_data_are_read(
    command, mistake, monkeypatch
):
    two = strategies.make_strategy("mirrored", ["CPU:0", "CPU:1"])
    monkeypatch.setattr(strategies, "make_strategy", lambda *arguments: two)
    command += ["--epochs", "1"]
    error = mistake(*command, "--jit", "--data", "absent")
    assert error.count("\n") == 1 and "leave out --jit" in error
    assert "one_device" in error and "with 2 replicas" in error
    assert "absent" in mistake(*command, "--no-jit", "--data", "absent")


def test_the_cpu_is_divided_before_tensorflow_computes(data, capfd):
    assert main(["train", *options_of(data, "--cpu-replicas", "3")]) == 2
    assert "before TensorFlow computes anything" in capfd.readouterr().err
