import contextlib
import fractions
import io
import json
import os
import pathlib

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from tests import tiny_run
from vfnet_tf import presets
from vfnet_tf.cli.__main__ import main
from vfnet_tf.cli.predict import check_files, picture_paths, write_detections
from vfnet_tf.inference import load, video
from vfnet_tf.inference.prediction import Prediction
from vfnet_tf.inference.predictor import Predictor


@pytest.fixture(scope="module")
def predicted(run_dir, traced, data, tmp_path_factory):
    """(stdout, OUT) of a command over files, a URL and a glob that overlap."""
    out = tmp_path_factory.mktemp("predicted") / "out"
    images = data / "val"
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        sources = [images / "d.png", (images / "a.jpg").as_uri()]
        sources += [images / "?.jpg", images / "a.jpg"]
        options = ["--checkpoint", run_dir, "--out", out, "--score-threshold", "0.2"]
        assert main(["predict", *map(str, (*sources, *options))]) == 0
    return text.getvalue(), out


def test_every_image_is_in_the_json_once_in_the_order_given(predicted, data):
    content = json.loads((predicted[1] / "detections.json").read_text())
    images = data / "val"
    assert [(i["id"], i["file_name"]) for i in content["images"]] == [
        (1, str(images / "d.png")),
        (2, (images / "a.jpg").as_uri()),
        (3, str(images / "a.jpg")),
        (4, str(images / "b.jpg")),
        (5, str(images / "f.jpg")),
    ]
    last = content["images"][-1]
    assert (last["height"], last["width"], last["picture"]) == (150, 120, "f.jpg")
    assert content["categories"][1] == {"id": 5, "name": "square"}


def test_the_json_is_a_coco_file_with_scores_in_original_pixels(predicted):
    coco = COCO(str(predicted[1] / "detections.json"))
    annotations = coco.loadAnns(coco.getAnnIds(imgIds=[4]))
    assert len(annotations) > 0
    assert {a["category_id"] for a in annotations} <= {3, 5, 9}
    assert min(a["score"] for a in coco.loadAnns(coco.getAnnIds())) > 0.2
    x, y, width, height = np.array([a["bbox"] for a in annotations]).T
    # The file is 200 high and 140 wide, the network saw 128 pixels at most.
    assert (x + width).max() <= 140.001 and (y + height).max() <= 200.001
    assert (y + height).max() > 160
    first = annotations[0]
    assert first["area"] == round(first["bbox"][2] * first["bbox"][3], 3)


def test_views_are_asked_for_as_in_evaluate(run_dir, traced, data, tmp_path, capsys):
    arguments = [str(data / "val" / "a.jpg"), "--checkpoint", str(run_dir)]
    arguments += ["--out", str(tmp_path), "--no-pictures", "--score-threshold", "0.2"]
    sizes = ["--tta-sizes", "96", "128", "128", "160"]
    assert main(["predict", *arguments, *sizes]) == 0
    assert "views      96x128, 128x160, each plain" in capsys.readouterr().out
    content = json.loads((tmp_path / "detections.json").read_text())
    predictor = Predictor(
        tiny_run.shared_detector(),
        tiny_run.tiny_config(),
        tta_sizes=[(96, 128), (128, 160)],
    )
    expected = predictor(data / "val" / "a.jpg", score_threshold=0.2).to_coco()
    keys = expected[0].keys()
    found = [{key: row[key] for key in keys} for row in content["annotations"]]
    assert found == expected


def test_images_are_listed_in_order_whichever_batch_was_full_first(tmp_path):
    result = {"category_id": 3, "bbox": [1.0, 2.0, 3.0, 4.0], "score": 0.5}
    entries = [
        (place, {"id": place + 1}, [{"image_id": place + 1, **result}])
        for place in (2, 0, 1)
    ]
    write_detections(tmp_path / "found.json", entries, ("disc",), (3,))
    content = json.loads((tmp_path / "found.json").read_text())
    assert [image["id"] for image in content["images"]] == [1, 2, 3]
    annotations = content["annotations"]
    assert [(a["id"], a["image_id"]) for a in annotations] == [(1, 1), (2, 2), (3, 3)]
    assert annotations[0]["area"] == 12.0


def test_each_image_has_its_picture(predicted, data):
    _, out = predicted
    names = {"d.png", "a.jpg", "a_2.jpg", "b.jpg", "f.jpg", "detections.json"}
    assert {path.name for path in out.iterdir()} == names
    with Image.open(out / "d.png") as picture, Image.open(data / "val/d.png") as image:
        factor = picture.width // image.width
        assert picture.size == (160 * factor, 128 * factor)
        enlarged = np.asarray(image.convert("RGB")).repeat(factor, 0).repeat(factor, 1)
        changed = (np.asarray(picture) != enlarged).any(axis=-1)
        assert 0.01 < changed.mean() < 0.9


def test_the_end_says_what_was_found_and_where_it_is(predicted):
    text, out = predicted
    content = json.loads((out / "detections.json").read_text())
    count = len(content["annotations"])
    assert f"found      {count} objects with a score above 0.2: " in text
    assert "images     5\n" in text
    assert text.endswith(f"detections {out}/detections.json\n")


def test_bad_files_stop_the_command_before_the_detector_is_built(
    tmp_path, data, mistake
):
    bad = tmp_path / "cut.png"
    bad.write_bytes((data / "val" / "d.png").read_bytes()[:2000])
    error = mistake("predict", bad, data / "val/a.jpg", "--checkpoint", "x")
    assert error.startswith("error: All images must be readable")
    assert "1 bad of 2 images:\n" in error and "cut.png: is truncated" in error


def test_bad_files_are_skipped_and_listed_on_demand(
    run_dir, traced, data, tmp_path, capsys
):
    bad = tmp_path / "cut.jpg"
    bad.write_bytes((data / "val" / "a.jpg").read_bytes()[:900])
    sources = [bad, data / "val" / "a.jpg", "file:///nowhere/b.jpg"]
    options = ["--checkpoint", run_dir, "--out", tmp_path / "out"]
    options += ["--skip-bad-images", "--no-pictures"]
    assert main(["predict", *map(str, (*sources, *options))]) == 0
    out = capsys.readouterr().out
    assert "2 bad images skipped:\n" in out
    assert "cut.jpg: " in out and "file:///nowhere/b.jpg: " in out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["detections.json"]
    content = json.loads((tmp_path / "out/detections.json").read_text())
    (image,) = content["images"]
    assert image["file_name"] == str(data / "val" / "a.jpg")


@pytest.mark.parametrize("skip", [False, True])
def test_what_is_found_bad_late_costs_nothing_else(
    run_dir, traced, data, tmp_path, capsys, monkeypatch, skip
):
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    for name in ("a.jpg", "c.png"):
        (source / name).write_bytes((data / "val" / name).read_bytes())
    content = bytearray((data / "val" / "g.png").read_bytes())
    content[60:100] = bytes(40)  # TensorFlow's decoder looks at the pixels only later.
    (source / "b.png").write_bytes(content)
    os.mkfifo(source / "pipe.jpg")
    save = Prediction.save

    def fail_once(prediction, path):
        if path.name == "a.jpg":
            raise OSError("disk full")
        return save(prediction, path)

    monkeypatch.setattr(Prediction, "save", fail_once)
    arguments = [str(source), "--checkpoint", str(run_dir), "--out", str(out)]
    status = main(["predict", *arguments, *["--skip-bad-images"] * skip])
    said = capsys.readouterr()
    images = json.loads((out / "detections.json").read_text())["images"]
    names = [pathlib.Path(image["file_name"]).name for image in images]
    assert names == ["a.jpg", "c.png"]
    assert [image.get("picture") for image in images] == [None, "c.png"]
    assert "1 pictures could not be drawn:\n" in said.out
    assert "a.jpg: OSError: disk full" in said.out
    assert "pipe.jpg: is no regular file, but a pipe" in said.out
    assert status == (0 if skip else 2)
    if not skip:
        assert "detections.json has the others. Received: 1 bad:" in said.err
    assert "b.png" in (said.out if skip else said.err)


@pytest.mark.parametrize(("skip", "status"), [(False, 1), (True, 0)])
def test_a_picture_that_cannot_be_drawn_is_named(
    run_dir, traced, data, tmp_path, capsys, skip, status
):
    out = tmp_path / "out"
    (out / "a.jpg").mkdir(parents=True)  # in the way of the picture
    arguments = [str(data / "val/a.jpg"), "--checkpoint", str(run_dir)]
    arguments += ["--out", str(out)]
    assert main(["predict", *arguments, *["--skip-bad-images"] * skip]) == status
    assert "1 pictures could not be drawn:\n" in capsys.readouterr().out
    (image,) = json.loads((out / "detections.json").read_text())["images"]
    assert "picture" not in image


def test_pictures_get_names_of_their_own():
    out = pathlib.Path("out")
    images = ["one/a.JPG", "two/a.jpeg", "a.bmp"]
    images += ["https://x.org/p/my%20cat.jpg?w=3", "http://x.org/"]
    names = ["a.jpg", "a_2.jpg", "a.png", "my cat.jpg", "image.png"]
    assert list(picture_paths(images, out).values()) == [out / name for name in names]


def test_pictures_never_replace_the_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    for images, out in (
        (["a.jpg"], "."),
        ([str(tmp_path / "a.jpg")], "link"),
        (["other/a.jpg", "a.jpg"], "."),  # the first would get the name of the second
    ):
        with pytest.raises(ValueError, match="--out must be another folder"):
            picture_paths(images, pathlib.Path(out))


def test_urls_are_not_fetched_to_be_checked(data):
    assert check_files(["https://nowhere.invalid/a.jpg", str(data / "val/a.jpg")]) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Give at least one file, folder, glob or URL"),
        (["nowhere.jpg"], "must exist. Received: source=nowhere.jpg"),
        (["DATA/val/a.jpg"], "no_run, which does not exist"),
        (["DATA/val", "--out", "DATA/val"], "--out must be another folder"),
        (["DATA/val", "--score-threshold", "1.5"], "--score-threshold must be in"),
    ],
)
def test_mistakes_are_one_message(arguments, message, mistake):
    assert message in mistake("predict", *arguments, "--checkpoint", "no_run")


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "clips" / "street.avi"
    info = video.VideoInfo(
        120, 150, fractions.Fraction(5), fractions.Fraction(1, 1000), 3
    )
    with video.VideoWriter(path.with_suffix(".mp4"), info) as writer:
        for number in range(3):
            writer.add(tiny_run.picture(number, 120, 150), number / 5)
    return path.with_suffix(".mp4").rename(path)


def test_a_video_gives_a_video_and_its_frames_in_the_json(
    run_dir, traced, data, clip, tmp_path, capsys
):
    image, out = data / "val" / "a.jpg", tmp_path / "out"
    cut = clip.with_name("cut.mp4")
    cut.write_bytes(clip.read_bytes()[:-60])
    arguments = [str(clip), str(cut), str(image), "--skip-bad-images"]
    arguments += ["--checkpoint", str(run_dir), "--score-threshold", "0.2"]
    assert main(["predict", *arguments, "--out", str(out)]) == 0
    shown = capsys.readouterr()
    assert f"video      {clip}\n" in shown.out and "3/3 frames" in shown.err
    assert "1 bad images skipped:" in shown.out and "must be whole" in shown.out
    names = {"street.mp4", "a.jpg", "detections.json"}
    assert {path.name for path in out.iterdir()} == names
    assert len(list(video.read_frames(out / "street.mp4"))) == 3
    content = json.loads((out / "detections.json").read_text())
    frames = content["images"][1:]
    assert content["images"][0]["file_name"] == str(image)
    assert [(f["id"], f["frame"], f["time"]) for f in frames] == [
        (2, 0, 0.0),
        (3, 1, 0.2),
        (4, 2, 0.4),
    ]
    assert {(f["file_name"], f["picture"]) for f in frames} == {
        (str(clip), "street.mp4")
    }
    assert {a["image_id"] for a in content["annotations"]} == {1, 2, 3, 4}


def test_a_broken_video_stops_the_command_before_the_detector_is_built(
    tmp_path, mistake
):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    error = mistake("predict", tmp_path / "broken.mp4", "--checkpoint", "x")
    assert "1 bad of 1 images:\n" in error and "broken.mp4: Invalid data" in error


def test_without_a_checkpoint_a_published_model_is_taken(data, tmp_path, monkeypatch):
    asked = []

    def load_quickly(checkpoint, config=None):
        asked.append((checkpoint, config))
        return tiny_run.shared_detector(), tiny_run.tiny_config(), "model.weights.h5"

    monkeypatch.setattr(load, "load_checkpoint", load_quickly)
    monkeypatch.setattr(presets, "published_directory", "cache/{}".format)
    image = str(data / "val" / "a.jpg")
    assert main(["predict", image, "--out", str(tmp_path), "--no-pictures"]) == 0
    assert asked == [("cache/vfnet_r50_fpn_mstrain_2x_coco", None)]


def test_a_checkpoint_and_a_file_are_not_both_given(data, capsys):
    image = str(data / "val" / "a.jpg")
    arguments = ["--checkpoint", "runs/mine", "--model", "a.onnx"]
    assert main(["predict", image, *arguments]) == 2
    assert "Give either --checkpoint or --model" in capsys.readouterr().err
