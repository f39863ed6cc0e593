import numpy as np

from vfnet_tf.reports import evaluation_figures


def confusion(num_classes):
    """Each class is right ten times; class 3 is taken for class 1 five times."""
    matrix = np.zeros((num_classes + 1, num_classes + 1), int)
    matrix[np.arange(num_classes), np.arange(num_classes)] = 10
    matrix[3, 1] = 5
    return matrix


def test_as_many_classes_as_can_be_read_are_all_shown():
    count = evaluation_figures.MAX_CLASSES
    matrix, names = confusion(count), [f"class {k}" for k in range(count)]
    shown, kept = evaluation_figures._shortened_confusion(matrix, names)
    assert kept == names
    np.testing.assert_array_equal(shown, matrix)


def test_of_more_classes_the_least_confused_are_added_up():
    count = 3 * evaluation_figures.MAX_CLASSES
    matrix, names = confusion(count), [f"class {k}" for k in range(count)]
    shown, kept = evaluation_figures._shortened_confusion(matrix, names)
    most = evaluation_figures.MAX_CLASSES
    assert len(kept) == most and shown.shape == (most + 1, most + 1)
    assert {"class 1", "class 3"} < set(kept)
    assert kept[-1] == f"{count - most + 1} others"
    assert shown.sum() == matrix.sum()
    assert shown[kept.index("class 3"), kept.index("class 1")] == 5
    assert shown[-2, -2] == 10 * (count - most + 1)
