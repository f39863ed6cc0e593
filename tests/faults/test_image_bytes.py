"""Damaged images are predicted or named, beside good ones that are not touched."""

import os
import re
import resource
import time

import numpy as np
import pytest
from PIL import Image

from tests.export.image_bytes import mutate
from tests.fuzzing import inputs
from tests.image_files import encoded, exif
from tests.tiny_run import PlainDetector, picture, tiny_config
from vfnet_tf.cli.__main__ import main
from vfnet_tf.foreign_text import terminal_text
from vfnet_tf.inference import load
from vfnet_tf.inference.predictor import Predictor

PICTURE = Image.fromarray(picture(4, 40, 56))
#: Files of all formats that are read, as PIL writes them.
WHOLE = [
    encoded(PICTURE, "JPEG"),
    encoded(PICTURE, "JPEG", progressive=True, exif=exif(6)),
    encoded(PICTURE.convert("CMYK"), "JPEG"),
    encoded(PICTURE.convert("L"), "JPEG"),
    encoded(PICTURE),
    encoded(PICTURE.convert("P"), "PNG"),
    encoded(PICTURE.convert("RGBA"), "PNG"),
    encoded(PICTURE, "BMP"),
    encoded(PICTURE, "TIFF"),
    encoded(PICTURE, "TIFF", compression="tiff_lzw"),
    encoded(PICTURE, "TIFF", compression="tiff_adobe_deflate"),
    encoded(PICTURE, "WEBP"),
    encoded(PICTURE, "WEBP", lossless=True, exif=exif(8)),
]
#: Files that are predicted together.
GROUP = 25
#: Seconds of the processor for a group; a damaged header may claim 128 megapixels.
SECONDS = 40.0
#: kB; such an image takes 0.4 GB, and 1.6 GB as floats.
MAX_MEMORY = 2.5 * 2**20


def write_group(folder, number, rng):
    """Writes damaged files and a good one at either end; returns the paths."""
    contents = [
        mutate(WHOLE[k % len(WHOLE)], rng) for k in range(number, number + GROUP)
    ]
    paths = []
    for place, content in enumerate([WHOLE[0], *contents, WHOLE[4]]):
        # The name's ending is not what decides.
        paths.append(str(folder / f"{place:02}.jpg"))
        (folder / f"{place:02}.jpg").write_bytes(content)
    return paths


@pytest.mark.fuzz
def test_damaged_images_are_predicted_or_named(tmp_path):
    predictor = Predictor(PlainDetector(), tiny_config())
    rng = np.random.default_rng(27)
    paths = write_group(tmp_path, 0, rng)
    good = [predictor(path) for path in (paths[0], paths[-1])]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    count = num_read = 0
    while count < inputs(300):
        paths, skipped = write_group(tmp_path, count, rng), []
        began = time.process_time()
        found = {one.source: one for one in predictor.stream(paths, skipped=skipped)}
        assert time.process_time() - began < SECONDS
        assert sorted([*found, *(name for name, _ in skipped)]) == paths
        for name, reason in skipped:
            assert name in reason and len(reason) < 1000
            assert reason.isprintable() or terminal_text(reason) == reason, reason
        for one, expected in zip((paths[0], paths[-1]), good, strict=True):
            np.testing.assert_array_equal(found[one].scores, expected.scores)
            np.testing.assert_array_equal(found[one].boxes, expected.boxes)
        assert all(np.isfinite(one.boxes).all() for one in found.values())
        count += GROUP
        num_read += len(found) - 2
    assert count / 10 < num_read < 0.9 * count
    assert sorted(map(str, tmp_path.iterdir())) == paths
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < MAX_MEMORY


def test_the_command_names_each_damaged_image_in_a_line(tmp_path, capfd, monkeypatch):
    weights = tmp_path / "best.weights.h5"
    loaded = (PlainDetector(), tiny_config(), weights)
    monkeypatch.setattr(load, "load_checkpoint", lambda *arguments: loaded)
    (tmp_path / "images").mkdir()
    paths = write_group(tmp_path / "images", 0, np.random.default_rng(1))
    out = tmp_path / "found"
    options = ["--checkpoint", str(tmp_path), "--out", str(out), "--skip-bad-images"]
    assert main(["predict", str(tmp_path / "images"), *options]) == 0
    said = capfd.readouterr()
    assert "Traceback" not in said.out + said.err
    assert terminal_text(said.out) == said.out
    (number,) = re.findall(r"^(\d+) bad images skipped:$", said.out, re.M)
    names = {os.path.basename(path) for path in paths}
    bad = set(re.findall(r"images/(\d\d\.jpg)", said.out))
    assert 0 < len(bad) == int(number) < GROUP
    assert not bad & {os.path.basename(paths[0]), os.path.basename(paths[-1])}
    assert {path.name for path in out.glob("*.jpg")} == names - bad
