import shutil
from pathlib import Path

import pytest

import recipes
from recipes.char_gpt.report import DOCUMENT, LEDGER, write

RESULTS = Path(recipes.__file__).parent / "results"


@pytest.mark.skipif(not (RESULTS / LEDGER).exists(), reason="no run of the character GPT is committed")
def test_the_report_is_rebuilt_from_the_committed_file_alone(tmp_path):
    shutil.copy(RESULTS / LEDGER, tmp_path)
    assert write(tmp_path) == (RESULTS / DOCUMENT).read_text(encoding="utf-8")
