import pytest

from tests.training.tiny_training import RecordingEvaluator, batch_of, fit, make_model
from vfnet_tf.training.callbacks import ResumableCheckpoint
from vfnet_tf.training.coco_evaluation import CocoEvaluation
from vfnet_tf.training.early_stopping import StopWithoutImprovement


def run(folder, aps, patience, start=0):
    checkpoint = ResumableCheckpoint(folder)
    model = make_model()
    start, _ = checkpoint.restore(model)
    evaluation = CocoEvaluation([batch_of([1])], RecordingEvaluator(aps))
    stopper = StopWithoutImprovement(checkpoint, patience)
    history = fit(model, evaluation, checkpoint, stopper, epochs=6, start=start)
    return len(history.history["loss"]), stopper


def test_it_stops_when_the_best_lies_back_so_many_epochs(tmp_path, capsys):
    epochs, stopper = run(tmp_path, [0.1, 0.3, 0.2, 0.3, 0.9], patience=2)
    assert epochs == 4
    assert stopper.is_over(4)
    assert not stopper.is_over(3)
    assert "val_AP was best, 0.3, after epoch 2" in capsys.readouterr().out


def test_a_resumed_run_remembers_its_best(tmp_path):
    checkpoint = ResumableCheckpoint(tmp_path)
    evaluation = CocoEvaluation([batch_of([1])], RecordingEvaluator([0.5, 0.1]))
    fit(make_model(), evaluation, checkpoint, epochs=2)
    epochs, _ = run(tmp_path, [0.2, 0.9], patience=2)
    assert epochs == 1


def test_epochs_without_evaluation_before_the_first_best_do_not_count(tmp_path):
    checkpoint = ResumableCheckpoint(tmp_path)
    assert not StopWithoutImprovement(checkpoint, 1).is_over(9)


def test_no_patience_is_refused(tmp_path):
    with pytest.raises(ValueError, match="patience=0"):
        StopWithoutImprovement(ResumableCheckpoint(tmp_path), 0)
