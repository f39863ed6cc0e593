import pytest

from vfnet_tf.data.formats.label_map import format_label_map, parse_label_map


@pytest.mark.parametrize(
    ("text", "names", "ids"),
    [
        ("item { id: 1 name: 'cat' }", ["cat"], [1]),
        # Any order, both quotes, comments, all separators, brackets of the other kind.
        ('item: <name: "b c"; id: 7,>  # {\nitem{id:2,name:\'a"\'}', ['a"', "b c"],
         [2, 7]),
        # The name to show comes first; other fields are read over.
        ("item { name: '/m/01' id: 3 display_name: 'person' keypoints { id: 1 label: 'x' }"
         " frequency: FREQUENT ancestor_ids: ['/m/0', '/m/2'] lvis < a: [{b: 1}] > }",
         ["person"], [3]),
        ("item { id: 1 name: 'it\\'s' ' \\303\\274\\x41\\u00e9\\n' }", ["it's üAé\n"],
         [1]),
        ("item { id: 1 name: 'u\u0308' }", ["\u00fc"], [1]),
    ],
)  # fmt: skip
def test_label_maps_are_read(text, names, ids):
    found = parse_label_map(text)
    assert (list(found.names), list(found.ids)) == (names, ids)
    assert [found.labels_of[name] for name in names] == list(range(len(names)))


def test_an_item_is_found_by_both_of_its_names():
    found = parse_label_map("item { id: 4 name: '/m/01' display_name: 'person' }")
    assert found.labels_of == {"/m/01": 0, "person": 0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no item"),
        ("# item", "no item"),
        ("model { a: 1 }", "line 1: 'model' must be item"),
        ("item { id: 1 }", "line 1: the item with the id 1 has no name"),
        ("item { id: 1 name: ' ' }", "has no name"),
        ("item { name: 'a' }", "line 1: the item must have an integer id, has None"),
        ("item { id: 1.5 name: 'a' }", "has '1.5'"),
        (
            "item { id: 1 name: 'a' }\nitem { id: 1 name: 'b' }",
            "line 2: a second .* id 1",
        ),
        ("item { id: 1 name: 'a' }\nitem { id: 2 name: 'a' }", "line 2: .* name 'a'"),
        ("item { id: 1 id: 2 name: 'a' }", "two values of id"),
        ("item {\n id: 1 name: 'a }\n}", "line 2: a quote is not closed"),
        ("item { id: 1 name: 'a'", "line 1: '' in place of the name of a field or }"),
        ("item { id name: 'a' }", "id has no value"),
        ("item { id: 1 name: 'a' } }", "'}' in place of the name of a field"),
        ("item { id: [1 name: 'a' }", "line 1: id has no ]"),
        ("item { id: 1 name: '\\xff' }", "the name of the id 1 is not valid UTF-8"),
        ("item " + "{ a " * 100_000, "nested too deeply"),
        ("item { a: " + "[ { a: " * 100_000, "nested too deeply"),
    ],
)
def test_wrong_label_maps_are_refused_with_the_line(text, message):
    with pytest.raises(ValueError, match=message):
        parse_label_map(text)


def test_what_is_written_is_read_as_it_was():
    names = ["a 'b' \\", 'say "x"', "\u00fc\n\t\x01", " blanks ", "# { item }", "\\x41"]
    ids = [1, 2, 5, 7, 8, 90]
    found = parse_label_map(format_label_map(names, ids))
    assert (list(found.names), list(found.ids)) == (names, ids)
