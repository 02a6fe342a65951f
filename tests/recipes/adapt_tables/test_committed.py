"""The committed results give the committed report, and the table on the results page is theirs."""

import re
import shutil
from pathlib import Path

import pytest

import recipes
from recipes.adapt_tables.experiments import gather
from recipes.adapt_tables.report import DOCUMENT, summary, write
from recipes.common.markdown import inserted

RESULTS = Path(recipes.__file__).parent / "results"
PAGE = RESULTS.parent.parent / "docs" / "results.md"


def test_the_page_shows_what_the_committed_results_give():
    assert inserted("adapt_tables", PAGE) == summary(gather(RESULTS))


@pytest.mark.long
def test_the_report_is_rebuilt_from_the_committed_files_alone(tmp_path):
    shutil.copytree(RESULTS, tmp_path / "results", ignore=shutil.ignore_patterns(DOCUMENT, "figures", "runs"))
    write(tmp_path / "results")
    assert (tmp_path / "results" / DOCUMENT).read_text(encoding="utf-8") == (RESULTS / DOCUMENT).read_text(
        encoding="utf-8"
    )
    drawn = {path.name for path in (tmp_path / "results" / "figures").iterdir()}
    assert drawn == {path.name for path in (RESULTS / "figures").glob("figure*.png")}


@pytest.mark.parametrize("path", sorted((RESULTS / "traces").glob("*.npz")), ids=lambda path: path.name)
def test_committed_traces_are_small(path):
    assert path.stat().st_size < 300_000


def test_every_committed_line_says_how_to_make_it_again_and_nothing_of_the_machines_folders():
    for name in ("adapt_tables.jsonl", "char_gpt.jsonl", "mixed_precision.jsonl"):
        path = RESULTS / name
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            assert f'"command": "python -m recipes.{path.stem} ' in line
            assert not re.search(r'[\s"=]/\w', line)
