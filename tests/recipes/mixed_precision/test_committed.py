"""The committed results give the committed report, and the table on the results page is theirs."""

import shutil
from pathlib import Path

import pytest

import recipes
from recipes.common.markdown import inserted
from recipes.mixed_precision.report import DOCUMENT, gather, summary, write
from recipes.mixed_precision.runs import LEDGER

RESULTS = Path(recipes.__file__).parent / "results"

pytestmark = pytest.mark.skipif(not (RESULTS / LEDGER).exists(), reason="no run of learned widths is committed")


def test_the_report_is_rebuilt_from_the_committed_file_alone(tmp_path):
    shutil.copy(RESULTS / LEDGER, tmp_path)
    write(tmp_path)
    assert (tmp_path / DOCUMENT).read_text(encoding="utf-8") == (RESULTS / DOCUMENT).read_text(encoding="utf-8")


def test_the_page_shows_what_the_committed_results_give():
    assert inserted("mixed_precision", RESULTS.parent.parent / "docs" / "results.md") == summary(gather(RESULTS))
