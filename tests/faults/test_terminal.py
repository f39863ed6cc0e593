"""What commands print of others: names, messages, warnings."""

import json
import warnings

import pytest
from PIL import Image

from vfnet_tf.cli import __main__ as console
from vfnet_tf.foreign_text import terminal_text

ODD = "a\x1b]0;owned\x07\x1b[2J\x9b31m\u202eb\r"


@pytest.mark.parametrize("command", ["scan", "convert-data"])
def test_names_and_messages_of_others_cannot_steer_the_terminal(
    tmp_path, capsys, command
):
    source = tmp_path / ODD
    source.mkdir()
    for name in ("good.png", f"{ODD}.png"):
        Image.new("RGB", (40, 40)).save(source / name)
    (source / "bad\x1b[2J.png").write_bytes(b"no image")
    names = ["good.png", f"{ODD}.png", "bad\x1b[2J.png", "none\x1b[2J.png"]
    content = {
        "images": [{"id": k, "file_name": name} for k, name in enumerate(names)],
        "categories": [{"id": 1, "name": ODD}],
        "annotations": [
            {"id": 1, "image_id": 0, "category_id": 1, "bbox": [1, 1, 9, 9]}
        ],
    }
    (source / "train.json").write_text(json.dumps(content))
    arguments = [command, str(source)]
    arguments += ["--out", str(tmp_path / "out")]
    arguments += ["--to", "coco"] if command == "convert-data" else []
    status = console.main(arguments)
    printed = "".join(capsys.readouterr())
    assert status in (1, 2) and "bad\\x1b[2J.png" in printed
    assert terminal_text(printed) == printed


def test_errors_and_warnings_of_a_command_cannot_either(capsys, monkeypatch):
    def run(options):
        print("name", ODD)
        warnings.warn(f"warned {ODD}", stacklevel=1)
        raise ValueError(f"wrong {ODD}")

    monkeypatch.setattr("vfnet_tf.cli.configs.run", run)
    assert console.main(["configs"]) == 2
    for text in capsys.readouterr():
        assert "owned" in text and terminal_text(text) == text
