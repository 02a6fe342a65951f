"""The committed results give the committed report, and the page shows what they say."""

import shutil
from pathlib import Path

import pytest

import recipes
from recipes.common import ledger
from recipes.common.markdown import inserted
from recipes.pareto.report import DOCUMENT, summary, write
from recipes.pareto.runs import LEDGER, ParetoSettings
from recipes.pareto.study import gather

RESULTS = Path(recipes.__file__).parent / "results"
PAGE = RESULTS.parent.parent / "docs" / "how-to" / "choose-a-precision.md"

pytestmark = pytest.mark.skipif(not (RESULTS / LEDGER).exists(), reason="no run of the study is committed")


def test_the_report_is_rebuilt_from_the_committed_file_alone(tmp_path):
    shutil.copy(RESULTS / LEDGER, tmp_path)
    write(tmp_path)
    assert (tmp_path / DOCUMENT).read_text(encoding="utf-8") == (RESULTS / DOCUMENT).read_text(encoding="utf-8")


def test_the_page_shows_what_the_committed_results_give():
    assert inserted("pareto", PAGE) == summary(gather(RESULTS / LEDGER))


def test_the_committed_runs_are_recognised_as_finished():
    for line in ledger.read(RESULTS / LEDGER):
        settings = ParetoSettings(**line["settings"])
        assert settings.recorded() == line["settings"]
        assert ledger.is_finished([line], settings.identity(settings.steps_per_epoch(50_000)))
