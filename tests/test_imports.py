import contextlib
import sys

import pytest

from vfnet_tf._imports import ImportWatch


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A library that counts its imports and fails if asked to."""
    name = "some_library_that_is_watched"
    (tmp_path / f"{name}.py").write_text(
        "import builtins\nbuiltins.seen.append('import')\nbuiltins.fail()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("builtins.seen", [], raising=False)
    monkeypatch.setattr("builtins.fail", lambda: None, raising=False)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    yield name
    sys.modules.pop(name, None)


@contextlib.contextmanager
def around():
    import builtins

    builtins.seen.append("before")
    try:
        yield
    finally:
        builtins.seen.append("after")


def test_the_first_import_is_made_inside_and_no_other(library):
    import builtins

    before = len(sys.meta_path)
    ImportWatch(library, around).start()
    ImportWatch(library, around).start()
    assert len(sys.meta_path) == before + 1
    __import__(library)
    assert builtins.seen == ["before", "import", "after"]
    assert len(sys.meta_path) == before
    ImportWatch(library, around).start()  # it is there
    assert len(sys.meta_path) == before


def test_an_import_that_fails_fails_as_ever(library, monkeypatch):
    import builtins

    def fail():
        raise OSError("broken")

    monkeypatch.setattr("builtins.fail", fail)
    ImportWatch(library, around).start()
    with pytest.raises(OSError, match="broken"):
        __import__(library)
    assert builtins.seen == ["before", "import", "after"]
    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        ImportWatch("no_such_library", around).start()
        __import__("no_such_library")
