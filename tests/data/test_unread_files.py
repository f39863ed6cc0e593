from tests.layouts import write_layout
from vfnet_tf.data.unread_files import find_unread_files


def names(root, **arguments):
    """dict kind -> names below `root` of what was found."""
    found = find_unread_files(**arguments)
    return {
        kind: [path.removeprefix(f"{root}/") for path, _ in entries]
        for kind, entries in found.items()
    }


def test_text_files_count_as_labels_only_where_labels_are(tmp_path):
    names_of_labels = ("a", "b", "classes", "train", "readme")
    files = ["images/a.jpg", *(f"labels/{name}.txt" for name in names_of_labels)]
    files += ["flat/c.jpg", "flat/d.txt", "docs/e.txt", "docs/f.xml"]
    root = write_layout(tmp_path, dict.fromkeys(files, "x"))
    images = [str(root / "images/a.jpg"), str(root / "flat/c.jpg")]
    labels = {str(root / "labels/a.txt"), str(root / "flat/c.txt")}
    deep = {"images": images, "folder": str(root)}
    found = names(root, **deep, labels=labels, label_suffix=".txt")
    assert found == {"unused_labels": ["flat/d.txt", "labels/b.txt"]}
    found = names(root, **deep, labels=labels, label_suffix=".xml")
    assert found == {"unused_labels": ["docs/f.xml"]}
    assert names(root, **deep) == {}


def test_without_a_folder_only_those_of_the_images_are_searched(tmp_path):
    files = {"in/a.jpg": "x", "in/b.jpg": "x", "in/deeper/c.jpg": "x", "d.jpg": "x"}
    root = write_layout(tmp_path, files)
    images = [str(root / "in/a.jpg"), str(root / "nowhere/gone.jpg")]
    assert names(root, images=images) == {"unlisted_file": ["in/b.jpg"]}
    found = names(root, images=images, folder=str(root))
    assert found == {"unlisted_file": ["d.jpg", "in/b.jpg", "in/deeper/c.jpg"]}
    (root / "link").symlink_to("in")
    assert names(root, images=[str(root / "link/a.jpg")]) == {
        "unlisted_file": ["link/b.jpg"]
    }
