from vfnet_tf.cli.__main__ import main
from vfnet_tf.config import list_configs
from vfnet_tf.paper.model_cards import config_table, model_card


def test_without_a_name_all_are_listed(capsys):
    assert main(["configs"]) == 0
    assert capsys.readouterr().out.startswith(config_table() + "\n")


def test_a_part_of_names_lists_those(capsys):
    assert main(["configs", "x101_32x4d"]) == 0
    assert capsys.readouterr().out.startswith(
        config_table(list_configs("x101_32x4d")) + "\n"
    )


def test_a_name_gives_its_card_also_if_others_contain_it(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("VFNET_HOME", str(tmp_path))
    name = "vfnet_r50_fpn_1x_coco"
    assert len(list_configs(name)) > 1
    assert main(["configs", name]) == 0
    card, _, place = capsys.readouterr().out.partition("\n\nCOCO weights")
    assert card == model_card(name)
    for part in (
        f"--checkpoint {name}",
        "--weights coco",
        f'from_pretrained("{name}")',
    ):
        assert part in card
    assert place.endswith(f"\n  {name}: downloaded when asked for\n")
    for other, has_place in (
        ("vfnet_r101_fpn_2x_coco", True),
        ("vfnet_r50_bccd", False),
    ):
        assert main(["configs", other]) == 0
        said = capsys.readouterr().out
        assert (
            "convert FILE.pth" in said and "--weights coco" not in said.split("\n\n")[3]
        )
        assert (f"  {other}: by hand, from" in said) == has_place


def test_a_run_gives_its_card_and_a_misspelt_name_is_told(run_dir, capsys, mistake):
    assert main(["configs", str(run_dir)]) == 0
    assert capsys.readouterr().out.startswith("tiny\n\ndetector   VFNet")
    assert "Did you mean vfnet_r50_bccd" in mistake("configs", "vfnet_r50_1x")


def test_the_list_says_which_weights_can_be_had_and_which_are_there(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("VFNET_HOME", str(tmp_path))
    name = "vfnet_r50_fpn_1x_coco"
    (tmp_path / "coco" / name).mkdir(parents=True)
    (tmp_path / "coco" / name / "source.json").write_text("{}")
    assert main(["configs", "vfnet_r*"]) == 0
    out = capsys.readouterr().out
    assert f"  {name}: in the cache\n" in out
    assert "  vfnet_r101_fpn_1x_coco: downloaded when asked for\n" in out
    assert "  vfnet_r101_fpn_2x_coco: by hand, from github.com/" in out
    assert main(["configs", "synthetic"]) == 0
    assert "No published COCO weights for these." in capsys.readouterr().out
