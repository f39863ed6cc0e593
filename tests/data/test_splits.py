import pytest

from vfnet_tf.data.splits import by_split, split_named


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("train", "train,TRAIN,Training,train2017,train_2017"),
        ("val", "val,valid,Validation,VALIDATION,val2014,eval,Evaluation,dev"),
        ("test", " test ,testing"),
        (None, "trainval,test-dev2017,train20177,value,default,"),
    ],
)
def test_a_name_stands_for_a_split_in_any_case_and_with_a_year(split, names):
    for name in names.split(","):
        assert split_named(name) == split, name


def test_the_plainest_name_of_a_split_comes_first():
    names = ["val2017", "Validation", "test", "dev", "valid", "x", "val", "Train"]
    assert by_split(names) == {
        "train": ["Train"],
        "val": ["val", "valid", "dev", "val2017", "Validation"],
        "test": ["test"],
    }
    assert list(by_split([("test", 1), ("train", 2)], lambda pair: pair[0])) == [
        "train",
        "test",
    ]
