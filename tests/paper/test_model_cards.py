import pytest

import vfnet_tf
from vfnet_tf.config import list_configs, load_config, override, save_config
from vfnet_tf.paper.model_cards import config_table, model_card


def entries(card):
    """Key -> text of a card's lines; a text of several lines is joined."""
    found = {}
    for line in card.splitlines()[2:]:
        key, text = line[:10].strip(), line[11:].strip()
        if key:
            found[key] = text
        elif text:
            found[[*found][-1]] += f" {text}"
    return found


def test_a_card_says_what_the_config_says_and_what_was_published():
    card = vfnet_tf.model_card("vfnet_r50_fpn_mdconv_c3-c5_mstrain_2x_coco")
    lines = card.splitlines()
    assert lines[0] == "vfnet_r50_fpn_mdconv_c3-c5_mstrain_2x_coco"
    assert lines[1].startswith("VFNet ResNet-50-DCN, multi-scale 2x: the row")
    said = entries(card)
    assert said["detector"] == "VFNet, star convolution, box refinement"
    assert said["backbone"].startswith("resnet50, frozen batch norm")
    assert said["backbone"].endswith("deformable convolutions in C3, C4, C5")
    assert said["head"] == (
        "3 convolutions of 256 channels in a tower, the last deformable; 80 classes"
    )
    assert said["assigner"] == "ATSS"
    assert "varifocal (alpha 0.75, gamma 2); boxes x 1.5, refined" in said["losses"]
    assert said["weights"] == "33.9 million"
    assert said["input"].startswith("short side 800, long side 1333 at most")
    assert "24 epochs of 16 images" in said["training"]
    assert "480x1333 to 960x1333" in said["training"]
    assert "x 0.1 after 16, 22" in said["optimizer"]
    assert said["AP"].startswith("47.8 on COCO val2017, 48.0 on test-dev; Table 4")
    assert said["speed"].startswith("16.3 images per second")
    assert said["file"].endswith("20201027pth-6879c318.pth")
    assert "Apache-2.0" in said["licence"]
    assert said["build"] == f'vfnet_tf.build_detector("{lines[0]}")'
    assert f"--config {lines[0]} --out RUN" in said["train"]
    assert f"--checkpoint {lines[0]}" in said["load"]
    # Commands and Python are not wrapped, to be copied.
    assert all(len(x) <= 88 for x in lines if " vfnet" not in x and x != lines[0])


@pytest.mark.parametrize("name", list_configs())
def test_every_config_has_a_card_and_a_row(name):
    said = entries(model_card(name))
    assert {"detector", "backbone", "losses", "training", "build"} <= set(said)
    row = config_table([name]).splitlines()[1]
    assert row.startswith(f"{name}  ")
    if "AP" in said:
        first = said["AP"].split(" ")[0]
        assert f" {first}" in row


def test_losses_of_other_detectors_are_theirs():
    assert entries(model_card("fcos_atss_r50_fpn_1x_coco"))["losses"].endswith(
        "centerness x 1"
    )
    raw = entries(model_card("vfnet_raw_r50_fpn_1x_coco"))
    assert raw["losses"] == "focal (alpha 0.25, gamma 2); boxes x 2"
    assert raw["detector"] == "VFNet"
    unweighted = "vfnet_r50_fpn_1x_coco_gamma2p0_alpha0p75_unweighted"
    assert "not weighted by IoU" in entries(model_card(unweighted))["losses"]


def test_what_was_changed_has_no_published_numbers(tmp_path):
    config = load_config("vfnet_r50_fpn_1x_coco")
    said = entries(model_card(override(config, model__num_classes=3)))
    assert "3 classes" in said["head"]
    assert not {"AP", "file", "weights"} & set(said)
    assert said["build"] == 'vfnet_tf.build_detector("CONFIG.py")'
    # Names of classes change nothing that was published.
    named = override(config, class_names=tuple(map(str, range(80))))
    assert "AP" in entries(model_card(named))
    save_config(override(config, data__keep_ratio=False), tmp_path / "config.json")
    said = entries(model_card(tmp_path))
    assert said["input"].startswith("stretched to 800x1333 (height x width)")


def test_the_table_has_published_ap_in_columns():
    lines = config_table(["vfnet_r50_fpn_1x_coco", "vfnet_r50_bccd"]).splitlines()
    assert lines[0].split() == [
        *("config", "detector", "backbone", "epochs"),
        *("M", "weights", "AP", "val", "test-dev"),
    ]
    assert lines[1].split()[3:] == ["12", "32.9", "41.6", "41.6"]
    assert lines[2].split()[3:] == ["18", "-", "-", "-"]
    assert len({len(line) for line in lines}) == 1
    assert len(config_table().splitlines()) == 1 + len(list_configs())
