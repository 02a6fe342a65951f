import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapt.perfmodel import (
    OtherRun,
    push_down_operations,
    push_up_operations,
    switching_cost,
    training_cost,
    training_speedup,
)
from tests.perfmodel.runs import runs
from tests.references import performance_model as literal


def approx(value):
    return pytest.approx(value, rel=1e-9)


@given(st.integers(0, 10**8), st.integers(1, 500), st.floats(1, 500))
def test_operations_of_a_switch_match_the_equations(numel, resolution, lookback):
    assert push_down_operations(numel, resolution) == approx(literal.push_down_operations(numel, resolution))
    assert push_up_operations(numel, lookback) == approx(literal.push_up_operations(numel, lookback))


@given(runs(), st.integers(1, 8))
def test_costs_match_the_loops(run, accumulation):
    table = run.operations, run.word_length, run.nonzero
    assert training_cost(*table, accumulation=accumulation) == approx(literal.training_cost(*table, accumulation))
    physical = training_cost(*table, accumulation=accumulation, form="physical")
    assert physical == approx(literal.physical_training_cost(*table))
    switch = run.numel, run.nonzero, run.lookback, run.resolution
    assert switching_cost(*switch, accumulation=accumulation) == approx(literal.switching_cost(*switch, accumulation))


@given(runs(), runs(), st.integers(1, 4), st.integers(1, 4), st.integers(1, 512), st.integers(1, 512))
def test_speedup_over_another_run_matches_the_loops(run, rival, accumulation, accumulation_other, batch, batch_other):
    table, other = ((r.operations, r.word_length, r.nonzero) for r in (run, rival))
    switch = run.numel, run.nonzero, run.lookback, run.resolution
    speedup = {
        form: training_speedup(
            *table,
            batch_size=batch,
            overhead=switching_cost(*switch, accumulation=accumulation),
            accumulation=accumulation,
            other=OtherRun(
                steps=len(rival.step),
                batch_size=batch_other,
                accumulation=accumulation_other,
                word_length=rival.word_length,
                nonzero=rival.nonzero,
                operations=rival.operations,
            ),
            form=form,
        )
        for form in ("paper", "physical")
    }
    # The equations sum over micro-batches, of which every row represents `accumulation`.
    ours = literal.switching_cost(*switch, accumulation) * accumulation
    expected = literal.paper_speedup(
        batch_other,
        literal.training_cost(*other, accumulation_other) * accumulation_other,
        batch,
        literal.training_cost(*table, accumulation) * accumulation,
        ours,
    )
    assert speedup["paper"] == approx(expected)
    expected = literal.physical_speedup(
        batch_other,
        literal.physical_training_cost(*other) * accumulation_other,
        batch,
        literal.physical_training_cost(*table) * accumulation,
        ours,
    )
    assert speedup["physical"] == approx(expected)


@given(runs(word_lengths=st.just(32), nonzeros=st.just(1.0)), st.sampled_from(["paper", "physical"]))
def test_float32_is_no_faster_than_float32(run, form):
    assert training_speedup(run.operations, run.word_length, run.nonzero, batch_size=8, form=form) == approx(1)


@given(runs(), st.data())
def test_shorter_words_and_more_zeros_cost_less(run, data):
    row, layer = (data.draw(st.integers(0, size - 1)) for size in run.word_length.shape)
    before = training_cost(run.operations, run.word_length, run.nonzero)
    for field, factor in ((run.word_length, 0.5), (run.nonzero, 0.9)):
        smaller = field.astype(float)
        smaller[row, layer] *= factor
        fields = (smaller, run.nonzero) if field is run.word_length else (run.word_length, smaller)
        assert training_cost(run.operations, *fields) < before
        faster, slower = (
            training_speedup(run.operations, *f, batch_size=4) for f in (fields, (run.word_length, run.nonzero))
        )
        assert faster >= slower


@given(runs(), st.randoms(use_true_random=False))
def test_the_order_of_layers_does_not_matter(run, random):
    order = list(range(len(run.layers)))
    random.shuffle(order)
    plain = training_cost(run.operations, run.word_length, run.nonzero)
    assert training_cost(run.operations[order], run.word_length[:, order], run.nonzero[:, order]) == approx(plain)
    fields = run.nonzero, run.lookback, run.resolution
    shuffled = switching_cost(run.numel[order], *(field[:, order] for field in fields))
    assert shuffled == approx(switching_cost(run.numel, *fields))


@given(runs(), st.integers(2, 5))
def test_every_kth_row_represents_k_steps(run, k):
    dense = [np.repeat(field, k, axis=0) for field in (run.word_length, run.nonzero, run.lookback, run.resolution)]
    other = OtherRun(steps=1000, batch_size=64)
    thin_overhead = switching_cost(run.numel, run.nonzero, run.lookback, run.resolution)
    dense_overhead = switching_cost(run.numel, *dense[1:])
    for comparison, steps in ((None, None), (other, len(run.step) * k)):
        thin = training_speedup(
            run.operations,
            run.word_length,
            run.nonzero,
            batch_size=32,
            overhead=thin_overhead,
            steps=steps,
            other=comparison,
        )
        full = training_speedup(
            run.operations, *dense[:2], batch_size=32, overhead=dense_overhead, steps=steps, other=comparison
        )
        assert thin == approx(full)


def test_larger_batches_bear_the_overhead_in_the_physical_form_only():
    def speedup(batch_size, form):
        return training_speedup([1000], [16], [1.0], batch_size=batch_size, overhead=1e6, form=form)

    assert speedup(1, "physical") < speedup(100, "physical") < 96 / 80
    assert speedup(10**9, "physical") == pytest.approx(96 / 80)
    assert speedup(1, "paper") == speedup(100, "paper")


def test_accumulation_divides_what_the_forms_say():
    assert training_cost([10], [[8]], [[0.5]], accumulation=4) == 10 * (4 + 8)
    assert training_cost([10], [[8]], [[0.5]], accumulation=4, form="physical") == 10 * (4 + 64)
    assert training_cost([10], [[8]], [[0.5]], backward_bits=16, backward_factor=3) == 10 * (4 + 48)
    assert switching_cost([7], [[1.0]], [[10]], [[100]], accumulation=4) * 4 == switching_cost([7], [1], [10], [100])


def test_half_the_steps_at_the_same_batch_is_twice_as_fast():
    other = OtherRun(steps=200, batch_size=32)
    same = training_speedup([5], [8], [1.0], batch_size=32, steps=200, other=other)
    assert training_speedup([5], [8], [1.0], batch_size=32, steps=100, other=other) == approx(2 * same)


@pytest.mark.parametrize(("memory", "speedup"), [(1.63, 1.20), (1.47, 1.42), (1.66, 1.13), (1.41, 1.32)])
def test_the_papers_speedups_follow_from_its_memory_ratios(memory, speedup):
    """Tables 3 and 4: MEM gives the mean of sp·WL, from which SU¹ follows, apart from the layers' sizes."""
    bits = (memory - 1) * 32
    overhead = switching_cost([36_864] * 20, 0.96, 70.0, 100)
    ours = training_speedup(
        [2_000_000] * 20, bits, 1.0, batch_size=512, overhead=overhead, backward_factor=1, form="physical"
    )
    assert ours == pytest.approx(speedup, abs=0.1)


def test_a_dictionary_of_operations_is_taken_in_its_order():
    assert training_cost({"b": 3, "a": 5}, [[8, 4]], [[1, 1]]) == training_cost([3, 5], [[8, 4]], [[1, 1]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1, 2], [[8]], [[1.0, 0.5, 1.0]]), "word_length and nonzero must be"),
        (([1, 2], [[8, 8, 8]], [[1.0, 0.5, 1.0]]), r"must be \[rows, 2\] like operations"),
        (([1, 2], [[8, 33]], [[1.0, 0.5]]), "word_length must be between 0 and 32, got 33"),
        (([1, 2], [[8, 8]], [[1.0, 1.5]]), "nonzero must be between 0 and 1, got 1.5"),
        (([1, 2], [[8, 8]], [[1.0, math.nan]]), "nonzero must be between 0 and 1, got nan"),
        (([1, -2], [[8, 8]], [[1.0, 1.0]]), "operations must be finite and at least 0, got -2"),
        (([0, 0], [[8, 8]], [[1.0, 1.0]]), "operations are zero in every layer"),
        (([[1, 2]], [[8, 8]], [[1.0, 1.0]]), "operations must have one number per layer"),
        (([1, 2], np.empty((0, 2)), np.empty((0, 2))), "word_length and nonzero must be"),
    ],
)
def test_bad_tables_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        training_cost(*arguments)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: training_cost([1], 8, 1, accumulation=0), "accumulation must be at least 1, got 0"),
        (lambda: training_cost([1], 8, 1, accumulation=math.nan), "accumulation must be at least 1, got nan"),
        (
            lambda: training_cost([1], 8, 1, accumulation=math.inf),
            "accumulation must be finite and at least 1",
        ),
        (lambda: push_down_operations([1], math.nan), "resolution must be finite and at least 0, got nan"),
        (lambda: push_up_operations([-1], 10), "numel must be finite and at least 0, got -1"),
        (lambda: training_cost([1], 8, 1, form="printed"), 'form must be "physical" or "paper", got \'printed\''),
        (lambda: training_cost([1], 8, 1, backward_factor=-1), "backward_factor must be finite and at least 0"),
        (lambda: training_speedup([1], 8, 1, batch_size=0), "batch_size must be at least 1, got 0"),
        (lambda: training_speedup([1], 8, 1, batch_size=1, overhead=-1), "overhead must be finite and at least 0"),
        (lambda: training_speedup([1], 8, 1, batch_size=1, steps=0), "steps must be at least 1, got 0"),
        (lambda: OtherRun(steps=0, batch_size=1), "steps must be at least 1, got 0"),
        (lambda: switching_cost([1, 2], [[1, 1]], [[1, 1, 1]], [[1, 1]]), r"must be \[rows, 2\] like numel"),
        (lambda: switching_cost([1], [[1]], [[-1]], [[1]]), "lookback must be finite and at least 0, got -1"),
        (
            lambda: switching_cost([100], 1, [[10, 20, 30]], 50),
            r"nonzero, lookback and resolution must be \[rows, 1\] like numel, got the shapes \[\], \[1, 3\] and \[\]",
        ),
        (
            lambda: switching_cost([1, 2], np.ones((1, 1, 2)), 10, 50),
            r"\[rows, 2\] like numel, got the shapes \[1, 1, 2\]",
        ),
        (lambda: switching_cost([1, 2], np.ones((0, 2)), 10, 50), r"\[rows, 2\] like numel, got the shapes \[0, 2\]"),
        (lambda: switching_cost([[1, 2]], 1, 10, 50), r"numel must have one number per layer, got the shape \[1, 2\]"),
        (
            lambda: push_down_operations([1, 2], [1, 2, 3]),
            r"numel and resolution must have shapes that broadcast, got the shapes \[2\] and \[3\]",
        ),
        (
            lambda: push_up_operations([1, 2], [1, 2, 3]),
            r"numel and lookback must have shapes that broadcast, got the shapes \[2\] and \[3\]",
        ),
    ],
)
def test_bad_numbers_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("wrong", [None, "2", True, [2], 1j], ids=str)
def test_non_numbers_are_refused(wrong):
    with pytest.raises(TypeError, match="accumulation must be a number, got"):
        training_cost([1], 8, 1, accumulation=wrong)
    with pytest.raises(TypeError, match="batch_size must be a number, got"):
        training_speedup([1], 8, 1, batch_size=wrong)
    with pytest.raises(TypeError, match="backward_bits must be a number, got"):
        training_cost([1], 8, 1, backward_bits=wrong)
    with pytest.raises(TypeError, match="overhead must be a number, got"):
        training_speedup([1], 8, 1, batch_size=1, overhead=wrong)


@pytest.mark.parametrize("wrong", ["8", ["8", "4"], {"a": 8}, 1j, [8 + 1j], [[8], [8, 4]]], ids=str)
def test_non_numeric_arrays_are_refused(wrong):
    with pytest.raises(TypeError, match="word_length must be a number or a regular array of numbers, got"):
        training_cost([1, 2], wrong, 1)


def test_another_kind_of_run_is_refused():
    with pytest.raises(TypeError, match="other must be an OtherRun or None, got 3"):
        training_speedup([1], 8, 1, batch_size=1, other=3)
