import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "parity.md").read_text("utf-8")


def test_each_of_the_36_facts_has_one_row_and_one_anchor():
    rows = re.findall(r'^\| <a id="(S\d+)"></a>(S\d+) \|', PAGE, re.MULTILINE)
    assert rows == [(f"S{number}", f"S{number}") for number in range(1, 37)]


def test_each_fact_names_tests_that_exist():
    for row in re.findall(r'^\| <a id="S\d+".*\|$', PAGE, re.MULTILINE):
        tests = re.findall(r"`([\w/]+\.py)`", row.split(" | ")[-1])
        assert tests, row
        missing = [name for name in tests if not (ROOT / "tests" / name).exists()]
        assert not missing, f"{row[:20]}: {missing}"


def test_comments_name_facts_that_the_page_has():
    for path in sorted((ROOT / "vfnet_tf").glob("**/*.py")):
        for fact in re.findall(r"\bfacts? (S\d+)", path.read_text("utf-8")):
            assert f'<a id="{fact}"></a>' in PAGE, path
