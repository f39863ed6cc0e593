import math

import numpy as np
import pytest

from tests.training.test_schedule_checks import dataset
from vfnet_tf.config import list_configs, load_config, override
from vfnet_tf.ops import convolution
from vfnet_tf.training import hardware, recipe
from vfnet_tf.training.preview import estimate_step_memory
from vfnet_tf.training.recipe import (
    FIELDS,
    evaluation_interval,
    fit_recipe,
    keep_choices,
)

PAPER = load_config("vfnet_r50_fpn_1x_coco")
GB = 10**9
CPU = hardware.Hardware(is_gpu=False, replicas=1, memory=16 * GB)
GPU = hardware.Hardware(is_gpu=True, replicas=1, memory=24 * GB)


def fit(data, machine=CPU, weights="backbone", config=PAPER, given=()):
    return fit_recipe(config, data, machine, weights=weights, given=given)


def test_a_small_set_on_a_cpu_gets_a_schedule_that_works():
    data = dataset(150)
    config, lines = fit(data)
    training = config.training
    steps = math.ceil(150 / training.batch_size) * training.epochs
    assert 500 < steps < 1000
    assert training.warmup_steps == steps // 10
    assert training.schedule == "cosine"
    horizon = 1 / (1 - training.ema_momentum)
    assert 0.03 * steps < horizon < 0.07 * steps
    # Small enough for a CPU, and not larger than the images need.
    assert config.data.image_size == (320, 512)
    text = "\n".join(lines)
    assert all(option.split(",")[0] in text for option in FIELDS.values())
    assert fit(data) == (config, lines)


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        # Images are 200x320: small objects want larger ones, on a GPU larger still.
        ("data__image_size", {"side": 8.0, "machine": GPU, "expected": (800, 1280)}),
        ("data__image_size", {"side": 40.0, "machine": GPU, "expected": (480, 768)}),
        (
            "training__batch_size",
            {
                "count": 1000,
                "machine": hardware.Hardware(True, 1, 80 * GB),
                "expected": 16,
            },
        ),
        ("training__batch_size", {"count": 50, "machine": GPU, "expected": 4}),
        ("training__batch_size", {"count": 3, "expected": 2}),
        (
            "training__batch_size",
            {"machine": hardware.Hardware(False, 1, 2 * GB), "expected": 1},
        ),
        (
            "training__batch_size",
            {"machine": hardware.Hardware(True, 8, 24 * GB), "expected": 8},
        ),
        ("training__base_learning_rate", {"weights": "detector", "expected": 0.005}),
        ("training__base_learning_rate", {"weights": "none", "expected": 0.002}),
        ("training__optimizer", {"weights": "none", "expected": "adamw"}),
        ("training__optimizer", {"count": 2000, "expected": "adamw"}),
        ("training__optimizer", {"count": 2001, "expected": "sgd"}),
        ("training__optimizer", {"weights": "detector", "expected": "sgd"}),
        ("training__clip_norm", {"expected": 10.0}),
        # 100,000 images are seen as often as in the published schedule.
        ("training__epochs", {"count": 100_000, "machine": GPU, "expected": 12}),
        ("training__warmup_steps", {"count": 100_000, "machine": GPU, "expected": 500}),
        ("data__cache_decoded", {"count": 100_000, "expected": False}),
        ("data__cache_decoded", {"expected": True}),
    ],
)
def test_each_choice_follows_data_weights_and_machine(key, changes):
    expected = changes.pop("expected")
    data = {name: changes.pop(name) for name in ("count", "side") if name in changes}
    config, _ = fit(dataset(**data), **changes)
    part, field = key.split("__")
    assert getattr(getattr(config, part), field) == expected


def test_weights_and_objects_decide_how_long_it_takes():
    def epochs(weights, data):
        return fit(data, weights=weights)[0].training.epochs

    many = dataset(100, labels=(0, 1) * 20)
    assert epochs("detector", many) < epochs("backbone", many) < epochs("none", many)
    few = dataset(100, labels=(0,))
    assert epochs("backbone", many) < epochs("backbone", few)
    assert epochs("backbone", few) <= 2 * epochs("backbone", many)


@pytest.mark.parametrize("key", FIELDS)
def test_what_the_user_chose_stays_and_is_not_said(key):
    part, field = key.split("__")
    config, lines = fit(dataset(150), given={key})
    assert getattr(getattr(config, part), field) == getattr(getattr(PAPER, part), field)
    assert not any(f"({FIELDS[key]})" in line for line in lines)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("frozen_stages", "frozen     the stem and one stage of the backbone"),
        ("evaluate_every", "evaluation every 2 epochs, about twelve in a training"),
    ],
)
def test_choices_that_no_field_holds_are_said_unless_the_user_made_them(key, said):
    option = f"(--{key.replace('_', '-')})"
    (line,) = [line for line in fit(dataset(150))[1] if option in line]
    assert line.startswith(said)
    assert option not in "\n".join(fit(dataset(150), given={key})[1])


@pytest.mark.parametrize("name", list_configs())
def test_images_that_a_config_changes_anew_are_not_kept_in_memory(name):
    data = fit(dataset(), config=load_config(name))[0].data
    assert not (data.scales or data.scale_range)
    assert data.cache_decoded == (data.random_crop == 0)


def test_a_config_that_clips_keeps_its_norm():
    config, lines = fit(dataset(), config=override(PAPER, training__clip_norm=35.0))
    assert config.training.clip_norm == 35.0
    assert (
        "clipping   gradients of norm 35 at most, the config's (--clip-norm)" in lines
    )


def test_a_rate_that_the_user_chose_keeps_its_optimizer():
    given = {"training__base_learning_rate"}
    config, _ = fit(dataset(), weights="none", given=given)
    assert config.training.optimizer == PAPER.training.optimizer


def test_data_without_an_object_are_no_crash():
    config, lines = fit(dataset(20, labels=()))
    assert config.training.epochs >= 12
    assert any("no object" in line for line in lines)


def test_a_run_that_goes_on_keeps_its_choices():
    chosen, _ = fit(dataset(150), GPU)
    assert keep_choices(PAPER, chosen) == chosen
    kept = keep_choices(
        override(PAPER, training__epochs=99), chosen, {"training__epochs"}
    )
    assert kept == override(chosen, training__epochs=99)


def test_evaluations_are_about_a_dozen():
    counts = [-(-epochs // evaluation_interval(epochs)) for epochs in range(12, 400)]
    assert min(counts) >= 8 and max(counts) <= 18
    assert evaluation_interval(1) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_the_memory_of_a_pixel_is_that_of_the_graph(name, monkeypatch):
    from vfnet_tf.builder import build_detector

    # As in every training: without oneDNN, wide convolutions have a result for each slice.
    monkeypatch.setattr(convolution, "onednn_is_on", lambda: True)
    config = override(PAPER, model__backbone__name=name)
    detector = build_detector(config)
    small, large = (
        estimate_step_memory(detector, (1, *size))["activations"]
        for size in ((128, 160), (256, 320))
    )
    by_pixel = (large - small) / (256 * 320 - 128 * 160)
    np.testing.assert_allclose(by_pixel, recipe.PIXEL_BYTES[name], rtol=0.05)
