"""Committed runs are recognised as finished, so that the command that made them skips them."""

from pathlib import Path

import pytest

import recipes
from recipes.char_gpt.training import GPTSettings
from recipes.common import ledger
from recipes.common.classification import ClassifierSettings
from recipes.mixed_precision.methods import TuningSettings

RESULTS = Path(recipes.__file__).parent / "results"

FORMER_COMPACT = {
    "name": "AdaPT",
    "initial": None,
    "buffer_bits": 0,
    "kl_tolerance": 2.0,
    "normalize_gradients": False,
    "push_up": "loss",
}
"""`AdaPT.compact()` with its first rules, by which nothing runs any more: the command repeats these runs."""


def settings_of(line):
    given = line["settings"]
    if "text" in given:
        return GPTSettings(**given)
    return (TuningSettings if "start_epochs" in given else ClassifierSettings)(**given)


@pytest.mark.parametrize("name", ["adapt_tables", "char_gpt", "mixed_precision"])
def test_settings_are_recorded_as_in_the_committed_lines(name):
    lines = ledger.read(RESULTS / f"{name}.jsonl")
    assert lines
    for line in lines:
        settings = settings_of(line)
        assert settings.recorded() == line["settings"]
        steps = settings.steps_per_epoch if name == "char_gpt" else settings.steps_per_epoch(50_000)
        finished = ledger.is_finished([line], settings.identity(steps))
        assert finished == (line["policy"] != FORMER_COMPACT), line["provenance"]["command"]
