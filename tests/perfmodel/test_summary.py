import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapt.perfmodel import (
    OtherRun,
    RunningSummary,
    inference_speedup,
    memory_ratio,
    size_ratio,
    switching_cost,
    training_speedup,
)
from adapt.trace import Trace
from tests.perfmodel.runs import runs


def head(run, rows):
    """The trace as it was after its first rows."""
    fields = {name: getattr(run, name)[:rows] for name in ("step", "word_length", "nonzero", "lookback", "resolution")}
    return SimpleNamespace(layers=run.layers, numel=run.numel, **fields)


def counts(run):
    return dict(zip(run.layers, run.operations.tolist(), strict=True))


@given(runs(), st.sampled_from(["physical", "paper"]), st.integers(1, 4), st.integers(1, 256))
def test_the_summary_agrees_with_the_functions(run, form, accumulation, batch_size):
    summary = RunningSummary(counts(run), batch_size=batch_size, accumulation=accumulation, form=form).update(run)
    table = run.word_length, run.nonzero
    numel = run.numel if form == "physical" else None
    overhead = switching_cost(run.numel, run.nonzero, run.lookback, run.resolution, accumulation=accumulation)
    share = run.numel / run.numel.sum()
    expected = {
        "training_speedup": training_speedup(
            run.operations, *table, batch_size=batch_size, overhead=overhead, accumulation=accumulation, form=form
        ),
        "inference_speedup": inference_speedup(run.operations, *table),
        "size_ratio": size_ratio(*table, numel),
        "memory_ratio": memory_ratio(*table, numel),
        "mean_word_length": run.word_length[-1] @ share,
        "nonzero": run.nonzero[-1] @ share,
        "run_mean_word_length": (run.word_length @ share).mean(),
        "run_nonzero": (run.nonzero @ share).mean(),
    }
    assert dataclasses.asdict(summary) == pytest.approx(expected, rel=1e-9)


@given(runs(), st.lists(st.integers(1, 5), max_size=4))
def test_updates_while_the_trace_grows_end_with_the_same_figures(run, stops):
    rows = len(run.step)
    running = RunningSummary(counts(run), batch_size=16)
    for stop in sorted(min(stop, rows) for stop in stops):
        partial = running.update(head(run, stop))
        assert dataclasses.asdict(partial) == pytest.approx(
            dataclasses.asdict(RunningSummary(counts(run), batch_size=16).update(head(run, stop))), rel=1e-9
        )
    whole = dataclasses.asdict(RunningSummary(counts(run), batch_size=16).update(run))
    assert dataclasses.asdict(running.update(run)) == pytest.approx(whole, rel=1e-9)


def test_an_update_reads_only_the_new_rows():
    class Rows(np.ndarray):
        read = 0

        def __getitem__(self, index):
            if isinstance(index, slice) and index.start is not None and index.start >= 0:
                Rows.read += len(range(*index.indices(len(self))))
            return super().__getitem__(index)

    trace = example_trace(1000)
    spy = head(trace, 1000)
    spy.word_length = trace.word_length.view(Rows)
    running = RunningSummary({"a": 10, "b": 20}, batch_size=4)
    running.update(head(trace, 990))
    running.update(spy)
    assert Rows.read == 10


def example_trace(rows, every=1):
    trace = Trace(["a", "b"], [30, 10])
    for row in range(rows):
        trace.append(
            every * (row + 1),
            word_length=[8 + row % 5, 12],
            fraction_length=[4, 6],
            nonzero=[0.9, 0.5],
            lookback=[50, 30],
            resolution=[100, 120],
        )
    return trace


def test_a_real_trace_is_summarised():
    trace = example_trace(7)
    summary = RunningSummary({"b": 20, "a": 10, "unused": 5}, batch_size=4).update(trace)
    assert summary.inference_speedup == pytest.approx(30 * 32 / (10 * 9 * 0.9 + 20 * 12 * 0.5))
    assert summary.size_ratio == pytest.approx((30 * 9 * 0.9 + 10 * 12 * 0.5) / (40 * 32))
    assert summary.mean_word_length == pytest.approx(trace.mean_word_length()[-1])


def test_thinned_rows_represent_the_steps_between_them():
    other = OtherRun(steps=70, batch_size=4)
    figures = [
        RunningSummary({"a": 10, "b": 20}, batch_size=4, other=other, steps=steps).update(trace).training_speedup
        for trace, steps in ((example_trace(7, every=10), None), (example_trace(7), 70))
    ]
    assert figures[0] == pytest.approx(figures[1])


def test_layers_that_join_are_counted_from_the_first_row():
    trace = example_trace(4)
    running = RunningSummary({"a": 10, "b": 20, "late": 70}, batch_size=4)
    running.update(trace)
    trace.add_layers(["late"], [50])
    joined = running.update(trace)
    assert joined == RunningSummary({"a": 10, "b": 20, "late": 70}, batch_size=4).update(trace)
    assert joined.run_mean_word_length > 20


def test_a_run_that_never_switches_has_no_overhead():
    trace = Trace(["a"], [10])
    trace.append(1, word_length=8, fraction_length=4, nonzero=1.0)
    assert RunningSummary({"a": 1}, batch_size=1).update(trace).training_speedup == 96 / 72


@pytest.mark.parametrize(
    ("operations", "options", "message"),
    [
        ({"a": 1}, {"batch_size": 0}, "batch_size must be at least 1"),
        ({"a": 1}, {"batch_size": 1, "accumulation": 0}, "accumulation must be at least 1"),
        ({"a": 1}, {"batch_size": 1, "form": "printed"}, "form must be"),
        ({"a": 1}, {"batch_size": 1, "backward_factor": -1}, "backward_factor must be"),
        ({"a": 0}, {"batch_size": 1}, "operations are zero"),
    ],
)
def test_bad_settings_are_refused_before_training(operations, options, message):
    with pytest.raises(ValueError, match=message):
        RunningSummary(operations, **options)


def test_operations_without_names_are_refused():
    with pytest.raises(TypeError, match=r"operations must map layer names to multiply-adds, got \[1, 2\]"):
        RunningSummary([1, 2], batch_size=1)


def test_traces_that_do_not_match_are_refused():
    running = RunningSummary({"a": 1, "b": 1}, batch_size=1)
    with pytest.raises(ValueError, match="trace has 0 rows, but 0 were read before"):
        running.update(Trace(["a", "b"], [1, 1]))
    running.update(example_trace(3))
    with pytest.raises(ValueError, match="trace has 2 rows, but 3 were read before"):
        running.update(example_trace(2))
    with pytest.raises(ValueError, match="operations has no entry for the layer 'b'"):
        RunningSummary({"a": 1}, batch_size=1).update(example_trace(3))
