"""The promises of SECURITY.md have the tests that it names."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_each_promise_names_a_test_that_exists():
    text = (ROOT / "SECURITY.md").read_text("utf-8")
    table = text[
        text.index("| promise | test |") : text.index("## What is not promised")
    ]
    rows = [row for row in table.splitlines()[2:] if row]
    assert len(rows) >= 15
    for row in rows:
        path, name = re.search(r"\| `(tests/[\w/]+\.py)::(test_\w+)` \|$", row).groups()
        assert f"def {name}(" in (ROOT / path).read_text("utf-8"), row
