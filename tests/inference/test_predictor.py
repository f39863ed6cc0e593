import fractions
import json
import os
import sys
import types

import keras
import numpy as np
import pytest
from PIL import Image

from tests import tiny_run
from tests.loopback import serve_folder
from vfnet_tf.config import save_config
from vfnet_tf.data.formats import coco
from vfnet_tf.data.pipeline import build_pipeline
from vfnet_tf.evaluation.coco import CocoEvaluator
from vfnet_tf.inference import sources, video
from vfnet_tf.inference.load import find_checkpoint, load_detector
from vfnet_tf.inference.predictor import Predictor


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return tiny_run.write_run(tmp_path_factory.mktemp("predictor") / "run")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_run.write_coco(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def images(data):
    return data / "val"


@pytest.fixture(scope="module")
def predictor():
    return Predictor(tiny_run.shared_detector(), tiny_run.tiny_config())


@pytest.fixture(scope="module")
def predictions(predictor, images):
    return predictor(images)


@pytest.fixture
def plain():
    """A predictor whose detector is not a network."""
    return Predictor(tiny_run.PlainDetector(), tiny_run.tiny_config())


def assert_same(first, second, atol=1e-3):
    assert len(first) == len(second) > 5
    np.testing.assert_allclose(first.boxes, second.boxes, atol=atol)
    np.testing.assert_allclose(first.scores, second.scores, atol=1e-5)
    np.testing.assert_array_equal(first.labels, second.labels)


def test_detections_are_those_of_the_evaluation_pipeline(
    predictor, predictions, data, tmp_path, monkeypatch
):
    monkeypatch.setenv("VFNET_TF_CACHE", str(tmp_path))
    dataset = coco.read_coco(data / "annotations/instances_val.json", training=False)
    settings = predictor.config.data
    batches = build_pipeline(
        dataset,
        batch_size=1,
        image_size=settings.image_size,
        normalization=settings.normalization,
        max_canvas_shapes=len(dataset),
        training=False,
    )
    compared = set()
    for batch in batches.as_numpy_iterator():
        found = predictor.detector.detect(
            batch["images"], batch["image_size"], batch["scale"]
        )
        count = int(found["num_detections"][0])
        place = int(batch["image_id"][0]) - 10
        prediction = predictions[place]
        assert prediction.source == dataset[place].path
        assert len(prediction) == count > 5
        for name in ("boxes", "scores", "labels"):
            expected = keras.ops.convert_to_numpy(found[name])[0, :count]
            np.testing.assert_array_equal(getattr(prediction, name), expected)
        compared.add(place)
    assert compared == set(range(7))


def test_a_prediction_has_boxes_names_and_the_size_of_its_image(predictions):
    first = predictions[0]
    assert (first.height, first.width) == (120, 150)
    assert first.boxes.dtype == first.scores.dtype == np.float32
    assert first.labels.dtype == np.int32
    assert np.all(np.diff(first.scores) <= 0)
    # The network saw 128 x 160; these are pixels of the file.
    assert 130 < first.boxes.max() <= 150 + 1e-3
    assert first.boxes[:, 3].max() <= 120 + 1e-3
    expected = [tiny_run.CLASS_NAMES[label] for label in first.labels]
    assert first.names == expected
    assert "a.jpg, 120x150: " in repr(first) and " disc" in repr(first)


def test_exif_orientation_is_applied(predictions, images):
    turned = predictions[5]
    assert (turned.height, turned.width) == (150, 120)
    upright = tiny_run.picture(5, 150, 120).astype("float32")
    assert np.abs(turned.image - upright).mean() < 12  # JPEG blurs the noise


def test_folders_globs_and_lists_come_in_order_and_one_path_comes_alone(images):
    names = sorted(str(path) for path in images.iterdir())
    expand = sources.expand_source
    assert expand(str(images)) == (names, False)
    assert expand(images / "*.jpg") == ([names[0], names[1], names[5]], False)
    assert expand(f"{images.parent}/**/?.png")[0] == [names[2], names[3], names[6]]
    assert expand(images / "a.jpg") == ([names[0]], True)
    assert expand([images / "b.jpg", images])[0] == [names[1], *names]
    url = (images / "a.jpg").as_uri()
    assert expand(url) == ([url], True)
    array = np.zeros((2, 8, 9, 3), "uint8")
    assert [image.shape for image in expand(array)[0]] == [(8, 9, 3)] * 2
    assert expand([]) == ([], False)


def test_files_that_look_like_images_but_are_not_taken_are_listed(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "A.PNG")
    for name in ("._a.png", "b.HEIC", "c.mp4", "Thumbs.db", "notes.txt"):
        (tmp_path / name).write_text("x")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "dead.png").symlink_to("nowhere.png")
    (tmp_path / "sub.png").mkdir()
    for source in (tmp_path, f"{tmp_path}/*", f"{tmp_path}/**"):
        passed_over = []
        found, _ = sources.expand_source(source, passed_over)
        assert found == [str(tmp_path / "A.PNG")]
        told = {os.path.basename(path): reason for path, reason in passed_over}
        hidden = {"._a.png", "sub.png"} if source == tmp_path else set()
        assert told.keys() == hidden | {"b.HEIC", "c.mp4", "pipe.png", "dead.png"}
        assert told["pipe.png"] == "is no regular file, but a pipe"
        assert ".heic, but can be named" in told["b.HEIC"]
        assert "by a glob" in told.get("sub.png", "by a glob")
    with pytest.raises(ValueError, match=r"A glob must hold .* where .*b\.HEIC is not"):
        sources.expand_source(f"{tmp_path}/*.HEIC")


@pytest.mark.parametrize("make_url", [str, lambda path: path.as_uri()])
def test_a_pipe_is_refused_and_not_waited_for(plain, tmp_path, make_url):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ValueError, match=r"pipe\.png, which is no regular file"):
        plain(make_url(tmp_path / "pipe.png"))
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(ValueError, match=r"pipe\.mp4, which is no regular file"):
        plain.save_video(tmp_path / "pipe.mp4", tmp_path / "out.mp4")


def test_a_glob_of_any_depth_ends_though_links_lead_in_circles(tmp_path):
    names = ["a.png", "one/a.png", "one/two/a.png", "one/two/b.jpg"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    for name in ("x", "y", "one/x", "one/y", "one/two/x", "one/two/y"):
        (tmp_path / name).symlink_to(tmp_path)
    (tmp_path / "far").symlink_to(tmp_path.parent / "far")

    def found(pattern):
        paths, _ = sources.expand_source(f"{tmp_path}/{pattern}")
        return [path.removeprefix(f"{tmp_path}/") for path in paths]

    assert found("**") == found("**/*") == names
    assert found("**/*.png") == found("**/**/a.*") == names[:3]
    assert found("*/**/*.png") == names[1:3]
    assert found("one/**/?.png") == names[1:3]
    assert found("**/two/*") == names[2:]
    with pytest.raises(ValueError, match="A glob must hold images"):
        found("nowhere/**/*.png")


@pytest.mark.parametrize("suffix", [".png", ".bmp"])
def test_a_file_whose_name_is_no_utf_8_is_read_like_another(plain, tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    Image.fromarray(tiny_run.picture(3, 40, 50)).save(path)
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff" + os.fsencode(suffix))
    os.link(path, odd)
    np.testing.assert_array_equal(plain(odd).image, plain(path).image)
    assert plain(odd).source == odd and json.dumps(plain(odd).source).isascii()


def test_a_file_whose_name_looks_like_a_glob_is_a_file(tmp_path):
    path = tmp_path / "scan[1].png"
    Image.new("RGB", (8, 8)).save(path)
    assert sources.expand_source(path) == ([str(path)], True)


@pytest.mark.parametrize("name", ["a.jpg", "c.png", "d.png", "f.jpg"])
def test_files_pil_images_arrays_and_urls_give_the_same(
    predictor, predictions, images, name
):
    expected = next(p for p in predictions if p.source.endswith(name))
    path = images / name
    with Image.open(path) as image:
        from_pil = predictor(image)
    assert from_pil.source is None and from_pil.index == 0
    assert_same(from_pil, expected)
    assert_same(predictor(expected.image), expected)
    from_url = predictor(path.as_uri())
    assert from_url.source == path.as_uri()
    assert_same(from_url, expected)
    np.testing.assert_array_equal(from_url.image, expected.image)


@pytest.mark.backend
def test_batches_by_canvas_give_the_same_as_single_images(plain, tmp_path):
    tiny_run.write_images(tmp_path)
    names = ("a.jpg", "b.jpg", "f.jpg", "d.png", "g.png")
    paths = [tmp_path / name for name in names]
    in_batches = Predictor(tiny_run.PlainDetector(), plain.config, batch_size=2)
    # The two upright images, b and f, are complete before the first two lying ones.
    assert [p.index for p in in_batches.stream(paths)] == [1, 2, 0, 3, 4]
    shapes = [shape for shape, _ in in_batches.detector.calls]
    assert shapes == [(2, 160, 128, 3), (2, 128, 160, 3), (1, 128, 160, 3)]
    singles = plain(paths)
    for name, prediction, single in zip(names, in_batches(paths), singles, strict=True):
        assert prediction.source == single.source == str(tmp_path / name)
        assert isinstance(prediction.boxes, np.ndarray)
        size = [prediction.width, prediction.height]
        np.testing.assert_allclose(prediction.boxes, [[0, 0, *size]], atol=1e-4)
        np.testing.assert_allclose(prediction.scores, single.scores, rtol=1e-6)
        assert prediction.names == ["star"]


def test_views_go_in_batches_by_their_canvases():
    sizes = [(60, 90), (60, 60), (61, 90)]
    pictures = [tiny_run.picture(seed, *size) for seed, size in enumerate(sizes)]
    one_by_one, in_batches = (
        Predictor(
            tiny_run.shared_detector(),
            tiny_run.tiny_config(),
            batch_size=batch_size,
            tta_sizes=[(64, 96), (96, 128)],
        )
        for batch_size in (1, 2)
    )
    for pair in zip(one_by_one(pictures), in_batches(pictures), strict=True):
        assert_same(*pair)


def test_grey_and_transparent_arrays_are_taken_as_rgb():
    grey = np.array([[10, 20]], "uint8")
    expected = [[[10, 10, 10], [20, 20, 20]]]
    load = sources.pixels_of_array
    np.testing.assert_array_equal(load(grey), expected)
    np.testing.assert_array_equal(load(grey[..., None]), expected)
    transparent = np.array([[[1, 2, 3, 200]]], "uint8")
    np.testing.assert_array_equal(load(transparent), [[[1, 2, 3]]])


def test_a_threshold_above_the_detectors_own_keeps_the_stronger_detections(
    predictor, predictions, images
):
    everything = predictions[0]
    threshold = float(everything.scores[4])
    kept = predictor(images / "a.jpg", score_threshold=threshold)
    assert len(kept) == 4  # the fifth has just this score, not more
    np.testing.assert_array_equal(kept.boxes, everything.boxes[:4])
    assert kept.names == everything.names[:4]


def test_only_a_threshold_below_the_detectors_own_is_passed_to_it(plain):
    image = np.full((128, 160, 3), 100, "uint8")
    score = float(plain(image).scores[0])
    assert 0.4 < score < 0.5
    assert len(plain(image, score_threshold=score)) == 0
    assert len(plain(image, score_threshold=score - 0.01)) == 1
    assert len(plain(image, score_threshold=0.01)) == 1
    overrides = [changes for _, changes in plain.detector.calls]
    assert overrides == [{}, {}, {}, {"score_threshold": 0.01}]


def test_results_in_coco_format_are_those_of_the_evaluator(predictions, data):
    evaluator = CocoEvaluator(data / "annotations/instances_val.json")
    names = ("boxes", "scores", "labels")
    evaluator.update([10], {n: getattr(predictions[0], n)[None] for n in names})
    assert predictions[0].to_coco(image_id=10) == evaluator.results()
    assert predictions[3].to_coco()[0]["image_id"] == 4
    assert {r["category_id"] for r in predictions[0].to_coco()} <= {3, 5, 9}


def test_pictures_show_detections_above_the_threshold(predictor, predictions, images):
    prediction = predictions[0]
    plain = prediction.draw(score_threshold=1.0, min_side=1)
    np.testing.assert_array_equal(plain, prediction.image)
    weak = prediction.scores[prediction.scores > 0.3].size
    assert weak < len(prediction)
    drawn = prediction.draw()
    np.testing.assert_array_equal(drawn, prediction.draw(score_threshold=0.3))
    assert (drawn != prediction.draw(score_threshold=0.05)).any()
    # A threshold of the caller is also that of the picture.
    chosen = predictor(images / "a.jpg", score_threshold=0.1)
    np.testing.assert_array_equal(chosen.draw(), chosen.draw(score_threshold=0.1))


def test_save_writes_a_picture_and_never_over_the_image(predictions, tmp_path):
    prediction = predictions[0]
    path = prediction.save(tmp_path / "new" / "a.png")
    with Image.open(path) as image:
        np.testing.assert_array_equal(np.asarray(image), prediction.draw())
    with pytest.raises(ValueError, match="must not be the image or video itself"):
        prediction.save(prediction.source)
    with pytest.raises(ValueError, match=r"must end in one of .*\.png"):
        prediction.save(tmp_path / "a.txt")


def test_a_bad_image_is_named_or_skipped(predictor, images, tmp_path):
    good, bad = images / "a.jpg", tmp_path / "cut.jpg"
    bad.write_bytes(good.read_bytes()[:900])
    with pytest.raises(ValueError, match=r"readable.*cut\.jpg"):
        predictor([good, bad])
    skipped = []
    found = list(predictor.stream([bad, good], skipped=skipped))
    assert [(p.source, p.index) for p in found] == [(str(good), 1)]
    ((name, reason),) = skipped
    assert name == str(bad) and "cut.jpg" in reason


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.jpg", r"must exist. Received: source=nowhere\.jpg"),
        ("nowhere/*.jpg", r"A glob must hold images .* source=nowhere/\*\.jpg"),
        (".", r"A folder must hold images .*\.jpeg"),
        ("ftp://example.org/a.jpg", "must start with http, https, file"),
        (3, "must be a path, a URL, .* type int"),
        (np.zeros((8, 8, 3), "float32"), "must be uint8.*float32"),
        (np.zeros((8, 8, 2), "uint8"), r"must be \[h, w, 3\].*\(8, 8, 2\)"),
        (np.zeros((0, 8, 3), "uint8"), r"must be \[h, w, 3\].*\(0, 8, 3\)"),
        ("text.jpg", "text.jpg is not an image"),
        ("empty.png", "empty.png is empty"),
        ("anim.gif", "anim.gif is GIF, must be"),
    ],
)
def test_a_source_that_is_no_image_is_an_error_that_names_it(
    plain, tmp_path, monkeypatch, source, message
):
    monkeypatch.chdir(tmp_path)
    if not isinstance(source, str) or source != ".":
        (tmp_path / "text.jpg").write_text("no image")
        (tmp_path / "empty.png").touch()
        Image.new("L", (8, 8)).save(tmp_path / "anim.gif")
    with pytest.raises(ValueError, match=message):
        plain(source)


@pytest.fixture
def server(images, monkeypatch):
    """A web server on this machine that gives the files of `images`."""
    monkeypatch.setenv("no_proxy", "*")

    with serve_folder(images) as address:
        yield address


def test_an_http_url_is_fetched(predictor, predictions, server):
    found = predictor(f"{server}/a.jpg")
    assert found.source == f"{server}/a.jpg"
    assert_same(found, predictions[0])


def test_urls_that_give_no_image_are_errors_that_name_them(
    plain, server, images, monkeypatch
):
    for url, message in (
        (f"{server}/none.jpg", rf"{server}/none\.jpg, .*answers 404"),
        (f"{server}/", rf"{server}/ is a web page"),
        ("http://127.0.0.1:1/a.jpg", r"reachable.*http://127\.0\.0\.1:1/a\.jpg"),
        ("file:///nowhere/a.jpg", r"reachable.*file:///nowhere/a\.jpg"),
    ):
        with pytest.raises(ValueError, match=message):
            plain(url)
    size = (images / "a.jpg").stat().st_size
    monkeypatch.setattr(sources, "MAX_DOWNLOAD", size - 1)
    with pytest.raises(ValueError, match=f"more than {size - 1} bytes"):
        plain(f"{server}/a.jpg")


def test_a_predictor_from_a_run_has_its_weights_and_names(run_dir, predictor):
    loaded = Predictor.from_checkpoint(run_dir, batch_size=4)
    assert (loaded.class_names, loaded.batch_size) == (tiny_run.CLASS_NAMES, 4)
    assert loaded.category_ids == tiny_run.CATEGORY_IDS
    pairs = zip(loaded.detector.weights, predictor.detector.weights, strict=True)
    for ours, theirs in pairs:
        np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (ours, theirs)))


def test_a_run_gives_its_best_weights_else_the_last_else_a_file(tmp_path):
    config = tiny_run.tiny_config()
    save_config(config, tmp_path / "config.json")
    last = tmp_path / "last.weights.h5"
    last.touch()
    assert find_checkpoint(tmp_path) == (config, last)
    best = tmp_path / "best.weights.h5"
    best.touch()
    assert find_checkpoint(str(tmp_path)) == (config, best)
    assert find_checkpoint(last) == (config, last)
    other = tiny_run.tiny_config(name="other")
    assert find_checkpoint(best, other) == (other, best)


def test_an_incomplete_run_is_an_error_that_names_the_missing_part(tmp_path):
    with pytest.raises(ValueError, match="must hold .*best.weights.h5 or last"):
        find_checkpoint(tmp_path)
    (tmp_path / "best.weights.h5").touch()
    with pytest.raises(ValueError, match="config.json beside them, or `config`"):
        find_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="which does not exist"):
        find_checkpoint(tmp_path / "no_run")
    (tmp_path / "model.txt").touch()
    with pytest.raises(ValueError, match="model.txt, another file"):
        find_checkpoint(tmp_path / "model.txt")


def test_weights_that_do_not_fit_are_named(run_dir, tmp_path):
    damaged = tmp_path / "damaged.weights.h5"
    damaged.write_bytes((run_dir / "best.weights.h5").read_bytes()[:5000])
    with pytest.raises(ValueError, match="damaged.weights.h5 for the config 'tiny'"):
        load_detector(tiny_run.tiny_config(), damaged)


def test_names_and_ids_must_be_as_many_as_classes(plain):
    detector = plain.detector
    for name, values in (("class_names", ("a", "b")), ("category_ids", (1,))):
        config = tiny_run.tiny_config(**{name: values})
        with pytest.raises(ValueError, match=rf"`config\.{name}` must be 3 values"):
            Predictor(detector, config)
    unnamed = Predictor(detector, tiny_run.tiny_config(class_names=(), category_ids=()))
    assert unnamed.class_names == ("class 0", "class 1", "class 2")
    assert unnamed.category_ids == (1, 2, 3)
    with pytest.raises(ValueError, match="`batch_size` must be >= 1"):
        Predictor(detector, tiny_run.tiny_config(), batch_size=0)


def test_images_are_stretched_where_the_config_says_so(plain):
    config = tiny_run.tiny_config(
        data=tiny_run.DataConfig(image_size=(64, 96), keep_ratio=False)
    )
    stretching = Predictor(plain.detector, config)
    prepared = stretching.prepare(tiny_run.picture(0, 128, 48))
    assert prepared["images"].shape == (64, 96, 3)
    np.testing.assert_array_equal(prepared["image_size"], [64, 96])
    np.testing.assert_array_equal(prepared["scale"], [0.5, 2.0])


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Seven frames of 96x128, ten in a second, the k-th of grey 100 + 20 k."""
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    rate, tick = fractions.Fraction(10), fractions.Fraction(1, 10000)
    with video.VideoWriter(path, video.VideoInfo(96, 128, rate, tick, 7)) as writer:
        for number in range(7):
            writer.add(np.full((96, 128, 3), 100 + 20 * number, "uint8"), number / 10)
    return path


def test_a_video_gives_a_prediction_for_each_frame(plain, clip, capsys):
    predictions = plain(clip, progress=True)
    for place, found in enumerate(predictions):
        assert (found.frame, found.index, found.source) == (place, place, str(clip))
        assert (found.height, found.width) == (96, 128)
        assert found.pixels is None  # frames are decoded again, not kept
        assert found.time == pytest.approx(place / 10)
    scores = [p.scores[0] for p in predictions]
    assert np.all(np.diff(scores) > 0.02)  # frames grow brighter
    np.testing.assert_allclose(predictions[5].image, 200, atol=2)
    assert "clip.mp4 frame 5 at 0.50 s, 96x128: 1 star" in repr(predictions[5])
    assert "7/7 frames" in capsys.readouterr().err
    array = np.full((96, 128, 3), predictions[3].image[0, 0], "uint8")
    np.testing.assert_allclose(plain(array).scores, scores[3], rtol=1e-3)


def test_the_frames_of_a_stream_come_one_batch_at_a_time_with_pixels(plain, clip):
    batched = Predictor(plain.detector, plain.config, batch_size=2)
    plain.detector.calls.clear()
    stream = batched.stream([clip, np.zeros((96, 128, 3), "uint8")])
    first = next(stream)
    assert first.pixels.shape == (96, 128, 3)
    assert len(plain.detector.calls) == 1
    rest = list(stream)
    assert [p.frame for p in rest] == [1, 2, 3, 4, 5, 6, None]
    assert rest[-1].index == 7 and len(plain.detector.calls) == 4


def test_a_video_is_saved_with_its_boxes_size_rate_and_times(plain, clip, tmp_path):
    out = tmp_path / "new" / "out.mp4"
    found = plain.save_video(
        clip, out, score_threshold=0.1, progress=False, line_width=4
    )
    assert [p.frame for p in found] == [*range(7)] and found[0].pixels is None
    info = video.inspect_video(out)
    assert (info.height, info.width, info.frame_rate) == (96, 128, 10)
    before, after = (list(video.read_frames(path)) for path in (clip, out))
    np.testing.assert_allclose([t for t, _ in after], [t for t, _ in before])
    for (_, old), (_, new) in zip(before, after, strict=True):
        changed = np.abs(new.astype(int) - old).max(axis=-1) > 40
        assert changed[48, 0:3].any() and not changed[40:90, 20:110].any()


def test_videos_that_cannot_be_saved_leave_nothing(plain, clip, tmp_path):
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(clip.read_bytes()[:-60])
    with pytest.raises(ValueError, match="must be whole"):
        plain.save_video(cut, tmp_path / "out.mp4", progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["cut.mp4"]
    skipped = []
    image = np.zeros((8, 8, 3), "uint8")
    found = list(plain.stream([cut, image], skipped=skipped))
    assert found[-1].frame is None and found[0].frame == 0
    assert skipped[0][0] == str(cut) and "must be whole" in skipped[0][1]
    with pytest.raises(ValueError, match="must not be the image or video itself"):
        plain.save_video(clip, clip)
    with pytest.raises(ValueError, match="`source` must be a video"):
        plain.save_video(tmp_path / "a.jpg", tmp_path / "out.mp4")


def test_videos_are_named_by_path_or_by_a_glob_of_their_ending(clip, tmp_path):
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(clip.read_bytes())
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    expand = sources.expand_source
    assert expand(copy) == ([str(copy)], False)
    assert expand(tmp_path / "*.mp4") == ([str(copy)], False)
    for source in (tmp_path, f"{tmp_path}/*"):
        assert expand(source)[0] == [str(tmp_path / "a.png")]
    with pytest.raises(ValueError, match="download a video first"):
        expand("https://example.org/street.mp4?x=1")


def test_detections_for_supervision_are_the_same_arrays(plain, monkeypatch):
    prediction = plain(np.full((96, 128, 3), 100, "uint8"))
    stand_in = types.SimpleNamespace(Detections=dict)
    monkeypatch.setitem(sys.modules, "supervision", stand_in)
    found = prediction.to_supervision()
    assert found.pop("data")["class_name"].tolist() == ["star"]
    assert found == {
        "xyxy": prediction.boxes,
        "confidence": prediction.scores,
        "class_id": prediction.labels,
    }
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match=r"pip install 'vfnet_tf\[supervision\]'"):
        prediction.to_supervision()


def test_supervision_takes_them(plain):
    supervision = pytest.importorskip(
        "supervision", reason="the extra `supervision` is not installed"
    )
    found = plain(np.full((96, 128, 3), 100, "uint8")).to_supervision()
    assert isinstance(found, supervision.Detections) and len(found) == 1
    assert found[found.confidence > 0.99].data["class_name"].tolist() == []
    assert found.data["class_name"].tolist() == ["star"]
    nothing = plain(np.zeros((96, 128, 3), "uint8"), score_threshold=0.99)
    assert len(nothing.to_supervision()) == 0
