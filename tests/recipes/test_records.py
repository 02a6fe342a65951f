import math

import numpy as np
import pytest

import adapt
from recipes.common.records import TRACE_ROWS, checkpoint_folder, run_name, selected, thinned


def test_long_traces_are_thinned_and_keep_their_ends():
    trace = adapt.Trace(["a"], [3])
    steps = np.arange(1, 5001)
    trace.append(steps, word_length=8, fraction_length=4, nonzero=(steps % 7 / 7)[:, None])
    part = selected(trace, thinned(len(trace), TRACE_ROWS))
    assert len(part) <= TRACE_ROWS + 1
    assert (part.step[0], part.step[-1]) == (1, 5000)
    assert part.nonzero[:, 0] == pytest.approx(part.step % 7 / 7)
    assert math.isnan(part.divergence[0, 0])


@pytest.mark.parametrize("rows", [0, 1, 9, 10, 11, 99, 101])
def test_rows_are_thinned_evenly(rows):
    chosen = thinned(rows, 10).tolist()
    assert len(chosen) <= 11
    assert chosen == sorted(set(chosen))
    if rows:
        assert (chosen[0], chosen[-1]) == (0, rows - 1)
        assert len(set(np.diff(chosen[:-1]))) <= 1


def test_names_say_what_is_looked_for_and_tell_everything_apart(tmp_path):
    settings = {"data_set": "cifar10", "model": "lenet5", "method": "adapt", "seed": 3, "lr": 0.1}
    first = run_name({"settings": settings})
    assert first.startswith("cifar10-lenet5-adapt-3-")
    assert first != run_name({"settings": settings | {"lr": 0.2}})
    assert run_name({"settings": {"method": "adapt", "seed": 3}}).startswith("adapt-3-")
    assert checkpoint_folder(tmp_path / "a.jsonl", {"settings": settings}) == tmp_path / "runs" / first
