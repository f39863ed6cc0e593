import keras
import numpy as np
import pytest

from tests import nms_cases
from tests.contracts import evaluate, on_tensorflow
from vfnet_tf.ops import nms as module
from vfnet_tf.ops.nms import class_wise_nms, class_wise_soft_nms, suppress

PORTABLE = [module._looped_nms]
if keras.backend.backend() == "tensorflow":
    PORTABLE.append(module._combined_nms)
both = pytest.mark.parametrize("nms", PORTABLE)


def run(nms, boxes, scores, iou_threshold, score_threshold, max_detections):
    def with_thresholds(boxes, scores):
        return nms(boxes, scores, iou_threshold, score_threshold, max_detections)

    return evaluate(
        with_thresholds, np.asarray(boxes, "float32"), np.asarray(scores, "float32")
    )


@pytest.mark.backend
@both
@pytest.mark.parametrize("threshold", ["0.5", "0.6", "0.65"])
@pytest.mark.parametrize("name", ["a", "b", "one"])
def test_it_keeps_what_the_official_operator_keeps(golden, name, threshold, nms):
    stored = golden("nms")
    boxes, scores = stored[f"{name}/boxes"], stored[f"{name}/scores"]
    keep = stored[f"{name}/nms_{threshold}/keep"]
    slots = len(keep) + 2
    found = run(nms, boxes[None], scores[None, :, None], float(threshold), 0.0, slots)
    assert found["num_detections"] == [len(keep)]
    np.testing.assert_array_equal(found["boxes"][0, : len(keep)], boxes[keep])
    np.testing.assert_array_equal(found["scores"][0, : len(keep)], scores[keep])
    np.testing.assert_array_equal(found["labels"][0], [0] * len(keep) + [-1] * 2)
    np.testing.assert_array_equal(found["boxes"][0, len(keep) :], 0)
    np.testing.assert_array_equal(found["scores"][0, len(keep) :], 0)


@pytest.mark.backend
@both
def test_classes_do_not_suppress_each_other_by_hand(nms):
    boxes = [[[0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]]]
    scores = [[[0.9, 0.3], [0.8, 0.7], [0.04, 0.6]]]
    found = run(nms, boxes, scores, 0.5, 0.05, 5)
    # Class 0: the first drops the second. Class 1: the second drops the first.
    assert found["num_detections"] == [3]
    np.testing.assert_allclose(found["scores"], [[0.9, 0.7, 0.6, 0, 0]])
    np.testing.assert_array_equal(found["labels"], [[0, 1, 1, -1, -1]])
    np.testing.assert_array_equal(
        found["boxes"][0, :3], [boxes[0][0], boxes[0][1], boxes[0][2]]
    )
    assert found["labels"].dtype == found["num_detections"].dtype == "int32"


@pytest.mark.backend
@both
def test_both_thresholds_must_be_exceeded_not_met(nms):
    boxes = [[[0, 0, 2, 2], [0, 0, 2, 1], [8, 8, 9, 9]]]  # IoU of the first two: 0.5
    scores = [[[0.75], [0.5], [0.25]]]
    found = run(nms, boxes, scores, 0.5, 0.25, 3)
    assert found["num_detections"] == [2]
    found = run(nms, boxes, scores, 0.499, 0.249, 3)
    np.testing.assert_allclose(found["scores"], [[0.75, 0.25, 0]])


@pytest.mark.backend
@both
def test_the_best_of_all_classes_are_kept(nms):
    boxes = [[[i * 20, 0, i * 20 + 10, 10] for i in range(4)]]
    scores = [[[0.1, 0.6], [0.2, 0.5], [0.9, 0.3], [0.8, 0.4]]]
    found = run(nms, boxes, scores, 0.5, 0.05, 3)
    np.testing.assert_allclose(found["scores"], [[0.9, 0.8, 0.6]])
    np.testing.assert_array_equal(found["labels"], [[0, 0, 1]])


@pytest.mark.backend
@pytest.mark.parametrize("nms", [*PORTABLE, class_wise_nms, class_wise_soft_nms])
@pytest.mark.parametrize("num_boxes", [0, 3])
def test_no_candidates_give_an_empty_result(nms, num_boxes):
    if num_boxes == 0 and nms in PORTABLE:
        pytest.skip("the public functions add a row")
    boxes, scores = np.zeros((2, num_boxes, 4)), np.full((2, num_boxes, 4), 0.01)
    found = run(nms, boxes, scores, 0.5, 0.05, 6)
    np.testing.assert_array_equal(found["num_detections"], [0, 0])
    np.testing.assert_array_equal(found["labels"], np.full((2, 6), -1))
    assert found["boxes"].shape == (2, 6, 4)


@pytest.mark.backend
@both
def test_images_of_a_batch_stay_apart(nms):
    rng = np.random.default_rng(0)
    boxes, scores = random_case(rng, batch=2)
    together = run(nms, boxes, scores, 0.5, 0.1, 20)
    for image in (0, 1):
        alone = run(
            nms, boxes[image : image + 1], scores[image : image + 1], 0.5, 0.1, 20
        )
        for key, value in alone.items():
            np.testing.assert_array_equal(value[0], together[key][image])


def random_case(rng, batch=1, num_boxes=60, num_classes=3):
    corners = rng.uniform(0, 60, (batch, num_boxes, 2))
    sizes = rng.uniform(1, 40, (batch, num_boxes, 2))
    boxes = np.concatenate([corners, corners + sizes], axis=-1)
    return boxes, rng.uniform(0, 1, (batch, num_boxes, num_classes))


@on_tensorflow
@pytest.mark.parametrize(("seed", "threshold"), [(0, 0.3), (4, 0.7)])
@pytest.mark.parametrize(
    ("steps", "per_detection"), [(None, 40), (2, 1), (2, 40), (16, 1), (16, 40)]
)
def test_tensorflows_kernel_and_the_loop_agree(
    monkeypatch, seed, threshold, steps, per_detection
):
    # Many scores are equal in a few steps. Of 360 pairs 20 or 800 are tried first; 20
    # are too few.
    monkeypatch.setattr(module, "_POOL_PER_DETECTION", per_detection)
    boxes, scores = random_case(np.random.default_rng(seed), batch=2, num_boxes=120)
    if steps is not None:
        scores = np.round(scores * steps) / steps
    arguments = (boxes, scores, threshold, 0.2, 20)
    looped = run(module._looped_nms, *arguments)
    combined = run(module._combined_nms, *arguments)
    for key, value in looped.items():
        np.testing.assert_array_equal(value, combined[key])


def run_softly(boxes, scores, *settings, **more):
    def with_settings(boxes, scores):
        return class_wise_soft_nms(boxes, scores, *settings, **more)

    return evaluate(
        with_settings, np.asarray(boxes, "float32"), np.asarray(scores, "float32")
    )


SOFT = [
    pytest.param(
        name,
        case,
        # One of each method on the other backends.
        marks=pytest.mark.backend if name == "a" and case[1] != 0.65 else (),
        id=f"{name}-{case}",
    )
    for name in ("a", "b", "one")
    for case in (
        ("linear", 0.3, 0.5, 0.001),
        ("linear", 0.65, 0.5, 0.001),
        ("linear", 0.5, 0.3, 0.05),
        ("gaussian", 0.3, 0.5, 0.001),
        ("gaussian", 0.65, 0.5, 0.001),
        ("gaussian", 0.5, 0.3, 0.05),
    )
]


def run_golden(stored, name, case, extra_slots=2):
    method, threshold, sigma, least = case
    key = f"{name}/soft_{method}_thr{threshold}_sigma{sigma}_min{least}"
    expected, keep = stored[f"{key}/dets"], stored[f"{key}/keep"]
    found = run_softly(
        stored[f"{name}/boxes"][None],
        stored[f"{name}/scores"][None, :, None],
        threshold,
        0.0,
        len(keep) + extra_slots,
        method,
        sigma,
        least,
    )
    assert found["num_detections"] == [len(keep)]
    return found, expected, keep


@pytest.mark.parametrize(("name", "case"), SOFT)
def test_it_decays_and_orders_as_the_official_operator(golden, name, case):
    found, expected, keep = run_golden(golden("nms"), name, case)
    count = len(keep)
    np.testing.assert_array_equal(found["boxes"][0, :count], expected[:, :4])
    np.testing.assert_allclose(found["scores"][0, :count], expected[:, 4], rtol=1e-6)
    np.testing.assert_array_equal(found["labels"][0], [0] * count + [-1] * 2)
    np.testing.assert_array_equal(found["boxes"][0, count:], 0)
    np.testing.assert_array_equal(found["scores"][0, count:], 0)


@pytest.mark.backend
def test_of_equal_scores_the_lower_index_comes_first(golden):
    stored = golden("nms")
    found, expected, _ = run_golden(stored, "tie", ("gaussian", 0.65, 0.5, 0.001))
    np.testing.assert_array_equal(found["boxes"][0, :6], expected[:, :4])
    np.testing.assert_allclose(found["scores"][0, :6], expected[:, 4], rtol=1e-6)
    # Officially the removal of box 1 has put box 5 before its equal, box 3.
    found, expected, keep = run_golden(stored, "tie", ("linear", 0.65, 0.5, 0.001))
    assert keep.tolist() == [0, 5, 2, 3]
    np.testing.assert_array_equal(
        found["boxes"][0, :4], stored["tie/boxes"][[0, 3, 2, 5]]
    )
    np.testing.assert_allclose(found["scores"][0, :4], expected[:, 4], rtol=1e-6)


TWO = [[0, 0, 2, 2], [0, 0, 2, 1]]  # IoU 0.5


@pytest.mark.backend
def test_scores_that_have_become_equal_in_a_pool_keep_that_order(monkeypatch):
    # The pool are the best 6 of 7 pairs.
    monkeypatch.setattr(module, "_POOL_PER_DETECTION", 2)
    weak = [[x, 6, x + 1, 7] for x in range(4)]
    boxes = [[[8, 8, 9, 9], *TWO, *weak]]
    scores = [[[0.4], [0.9], [0.8], *[[0.1]] * 4]]
    found = run_softly(boxes, scores, 0.5, 0.05, 3)
    np.testing.assert_array_equal(found["scores"], np.float32([[0.9, 0.4, 0.4]]))
    np.testing.assert_array_equal(found["boxes"], [[TWO[0], boxes[0][0], TWO[1]]])


@pytest.mark.backend
def test_scores_are_lowered_within_a_class_by_hand():
    boxes = [[*TWO, [8, 8, 9, 9]]]
    scores = [[[0.8, 0.3], [0.6, 0.4], [0.2, 0.05]]]
    found = run_softly(boxes, scores, 0.5, 0.05, 6)
    # Class 0: 0.6 x (1 - 0.5); class 1: 0.3 x (1 - 0.5); 0.05 is not above 0.05.
    np.testing.assert_allclose(found["scores"], [[0.8, 0.4, 0.3, 0.2, 0.15, 0]])
    np.testing.assert_array_equal(found["labels"], [[0, 1, 0, 0, 1, -1]])
    order = [boxes[0][place] for place in (0, 1, 1, 2, 0)]
    np.testing.assert_array_equal(found["boxes"][0, :5], order)
    assert found["num_detections"] == [5]
    assert found["labels"].dtype == found["num_detections"].dtype == "int32"

    gaussian = run_softly(boxes, scores, 0.5, 0.05, 3, "gaussian", 0.25)
    decayed = 0.6 * np.exp(-(0.5**2) / 0.25)
    np.testing.assert_allclose(gaussian["scores"], [[0.8, 0.4, decayed]], rtol=1e-6)


@pytest.mark.backend
def test_the_threshold_is_met_not_exceeded_and_below_the_least_score_is_out():
    scores = [[[0.75], [0.5]]]
    lowered = run_softly([TWO], scores, 0.5, 0.3, 2)
    # Below the score threshold by now, which is not asked again.
    np.testing.assert_allclose(lowered["scores"], [[0.75, 0.25]])
    as_it_was = run_softly([TWO], scores, 0.501, 0.3, 2)
    np.testing.assert_allclose(as_it_was["scores"], [[0.75, 0.5]])
    kept = run_softly([TWO], scores, 0.5, 0.3, 2, min_score=0.25)
    assert kept["num_detections"] == [2]
    removed = run_softly([TWO], scores, 0.5, 0.3, 2, min_score=0.251)
    assert removed["num_detections"] == [1]


@pytest.mark.backend
def test_without_a_least_score_each_pair_is_taken_once():
    # The second box is the first: its score becomes 0.
    found = run_softly([[TWO[0], TWO[0]]], [[[0.75], [0.5]]], 0.5, 0.3, 4, min_score=0)
    np.testing.assert_array_equal(found["scores"], [[0.75, 0, 0, 0]])
    assert found["num_detections"] == [2]


def soft_nms_in_numpy(boxes, scores, threshold, score_threshold, count, method):
    """One image, one pair after the other: rows of box, score, label."""
    left = {
        (n, k): float(scores[n, k])
        for n, k in np.argwhere(scores > score_threshold).tolist()
    }
    rows = []
    while left and len(rows) < count:
        best = max(left, key=left.get)
        rows.append([*boxes[best[0]], left.pop(best), best[1]])
        for n, k in list(left):
            if k != best[1]:
                continue
            first, second = boxes[best[0]], boxes[n]
            sides = np.minimum(first[2:], second[2:]) - np.maximum(
                first[:2], second[:2]
            )
            common = np.prod(np.maximum(sides, 0))
            union = np.prod(first[2:] - first[:2]) + np.prod(second[2:] - second[:2])
            iou = common / (union - common)
            if method == "gaussian":
                left[n, k] *= np.exp(-(iou**2) / 0.5)
            elif iou >= threshold:
                left[n, k] *= 1 - iou
            if left[n, k] < 1e-3:
                del left[n, k]
    return np.array(rows)


@pytest.mark.backend
@pytest.mark.parametrize("method", ["linear", "gaussian"])
@pytest.mark.parametrize("per_detection", [1, 2, 40])
def test_a_pool_of_the_best_gives_what_all_pairs_give(
    monkeypatch, method, per_detection
):
    # Of 450 pairs 30, 60 or all are tried first; 30 are too few.
    monkeypatch.setattr(module, "_POOL_PER_DETECTION", per_detection)
    boxes, scores = random_case(np.random.default_rng(4), 2, 150)
    boxes, scores = boxes.astype("float32"), scores.astype("float32")
    found = run_softly(boxes, scores, 0.4, 0.2, 30, method)
    for image in (0, 1):
        expected = soft_nms_in_numpy(
            boxes[image].astype("float64"), scores[image], 0.4, 0.2, 30, method
        )
        np.testing.assert_array_equal(found["boxes"][image], expected[:, :4])
        np.testing.assert_allclose(found["scores"][image], expected[:, 4], rtol=1e-5)
        np.testing.assert_array_equal(found["labels"][image], expected[:, 5])
    assert np.all(np.diff(found["scores"]) <= 0)


@on_tensorflow
@pytest.mark.parametrize("num_boxes", [5, 60])
def test_soft_nms_runs_in_a_graph_of_unknown_sizes(num_boxes):
    import tensorflow as tf

    @tf.function(
        input_signature=[
            tf.TensorSpec((None, None, 4), "float32"),
            tf.TensorSpec((None, None, 3), "float32"),
        ]
    )
    def in_graph(boxes, scores):
        return class_wise_soft_nms(boxes, scores, 0.4, 0.2, 3)

    boxes, scores = random_case(np.random.default_rng(6), 2, num_boxes)
    boxes, scores = boxes.astype("float32"), scores.astype("float32")
    found = in_graph(boxes, scores)
    assert found["boxes"].shape == (2, 3, 4)
    for name, value in run_softly(boxes, scores, 0.4, 0.2, 3).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6)


@pytest.mark.backend
def test_the_kinds_of_nms_go_by_name():
    boxes, scores = [TWO], [[[0.75], [0.5]]]

    def named(name):
        return evaluate(
            lambda b, s: suppress(b, s, 0.4, 0.05, 2, name, 0.25, 0.01),
            np.asarray(boxes, "float32"),
            np.asarray(scores, "float32"),
        )["scores"]

    np.testing.assert_allclose(named("hard"), [[0.75, 0]])
    np.testing.assert_allclose(named("soft_linear"), [[0.75, 0.25]])
    gaussian = 0.5 * np.exp(-1.0)
    np.testing.assert_allclose(named("soft_gaussian"), [[0.75, gaussian]], rtol=1e-6)
    with pytest.raises(ValueError, match="`nms`.*nms='softer'"):
        named("softer")
    with pytest.raises(ValueError, match="`method`.*method='naive'"):
        run_softly(boxes, scores, 0.5, 0.05, 2, method="naive")


@pytest.mark.backend
@pytest.mark.parametrize("name", nms_cases.CASES)
def test_edges_by_hand(name):
    boxes, scores, iou_threshold, limit, expected = nms_cases.case(name)
    settings = (iou_threshold, nms_cases.SCORE_THRESHOLD, limit)
    nms_cases.check(run(class_wise_nms, boxes, scores, *settings), expected)
    prepared = module._prepare(boxes, scores)
    nms_cases.check(run(module._looped_nms, *prepared, *settings), expected)
    if len(PORTABLE) > 1:
        import tensorflow as tf

        shapes = ((None, None, 4), (None, None, scores.shape[-1]))
        in_graph = tf.function(
            lambda boxes, scores: class_wise_nms(boxes, scores, *settings),
            [tf.TensorSpec(shape) for shape in shapes],
            autograph=False,
        )
        nms_cases.check(in_graph(boxes, scores), expected)
    if iou_threshold == 0.5:
        # What is dropped above is weakened to less than 0.2 here.
        softly = run_softly(boxes, scores, *settings, min_score=0.2)
        strong = expected["scores"] >= 0.2
        np.testing.assert_array_equal(
            softly["scores"][strong], expected["scores"][strong]
        )
        np.testing.assert_array_equal(
            softly["labels"][strong], expected["labels"][strong]
        )
        np.testing.assert_array_equal(
            softly["boxes"][strong], expected["boxes"][strong]
        )
        assert softly["num_detections"] == strong.sum()


@pytest.mark.backend
@pytest.mark.parametrize(("name", "value"), nms_cases.WRONG)
def test_settings_that_make_no_sense_are_refused_by_name(name, value):
    settings = {"iou_threshold": 0.5, "score_threshold": 0.1, "max_detections": 3}
    scores, boxes = np.full((1, 2, 1), 0.5, "float32"), np.float32([TWO])
    is_soft = name in ("sigma", "min_score")
    functions = [class_wise_soft_nms] if is_soft else [class_wise_nms, suppress]
    for function in functions:
        with pytest.raises(ValueError, match=f"`{name}` must be .*Received: {name}="):
            function(boxes, scores, **{**settings, name: value})
    if isinstance(value, float):
        tensor = keras.ops.convert_to_tensor(value, dtype="float32")
        with pytest.raises(ValueError, match=f"`{name}` must be"):
            functions[0](boxes, scores, **{**settings, name: tensor})


@pytest.mark.backend
def test_shapes_that_do_not_fit_are_refused():
    for boxes, scores in (
        ((1, 2, 4), (1, 3, 1)),
        ((1, 2, 5), (1, 2, 1)),
        ((2, 2, 4), (1, 2, 1)),
        ((2, 4), (2, 1)),
        ((1, 2, 1, 4), (1, 2, 1)),
    ):
        for nms in (class_wise_nms, class_wise_soft_nms):
            with pytest.raises(ValueError, match=r"\[B, N, 4\] and scores"):
                nms(np.zeros(boxes), np.zeros(scores), 0.5, 0.1, 3)


@pytest.mark.backend
def test_of_equal_ranks_the_first_are_the_best_and_nan_is_the_worst():
    ranks = np.full((2, 3000), 0.5, "float32")
    ranks[1, 5], ranks[1, 7], ranks[1, 2000] = np.nan, 0.75, 0.75
    found = evaluate(lambda x: module.best_places(x, 6), ranks)
    assert found.tolist() == [[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 7, 2000]]
