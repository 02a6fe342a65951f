"""What the documentation says of the repository is true: the files that it names exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_files_that_a_page_names_exist(page):
    named = set(re.findall(r"`((?:adapt|tests|recipes|benchmarks|docs)/[\w./-]+)`", page.read_text(encoding="utf-8")))
    missing = sorted(name for name in named if not (ROOT / name).exists())
    assert not missing


def test_the_rooms_on_the_architecture_page_are_those_of_the_package():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    house = page.split("```")[1]
    drawn = set(re.findall(r"(\w+)(?:/|\.py)", house)) | {"__main__"}
    there = {p.name.removesuffix(".py") for p in (ROOT / "adapt").iterdir() if p.suffix == ".py" or p.is_dir()}
    assert drawn == there - {"__init__", "__pycache__"}
