import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapt.perfmodel import inference_speedup, memory_ratio, size_ratio
from tests.perfmodel.runs import runs
from tests.references import performance_model as literal


def approx(value):
    return pytest.approx(value, rel=1e-9)


@given(runs())
def test_ratios_match_the_loops(run):
    table = run.word_length, run.nonzero
    assert inference_speedup(run.operations, *table) == approx(literal.inference_speedup(run.operations, *table))
    alike = [1] * len(run.layers)
    for numel in (run.numel, None):
        counted = alike if numel is None else numel
        assert size_ratio(*table, numel) == approx(literal.size_ratio(*table, counted))
        assert memory_ratio(*table, numel) == approx(literal.memory_ratio(*table, counted))


@given(runs(word_lengths=st.just(32), nonzeros=st.just(1.0)))
def test_float32_has_ratio_one_and_twice_the_memory_with_masters(run):
    table = run.word_length, run.nonzero
    assert inference_speedup(run.operations, *table) == approx(1)
    assert size_ratio(*table, run.numel) == approx(1)
    assert memory_ratio(*table, run.numel) == approx(2)


@given(runs(), st.data())
def test_shorter_words_and_more_zeros_are_smaller_and_faster(run, data):
    layer = data.draw(st.integers(0, len(run.layers) - 1))
    for name, factor in (("word_length", 0.5), ("nonzero", 0.9)):
        fields = {"word_length": run.word_length.astype(float), "nonzero": run.nonzero.copy()}
        before = fields["word_length"].copy(), fields["nonzero"].copy()
        fields[name][-1, layer] *= factor
        after = tuple(fields.values())
        assert size_ratio(*after, run.numel) < size_ratio(*before, run.numel)
        assert memory_ratio(*after, run.numel) < memory_ratio(*before, run.numel)
        assert inference_speedup(run.operations, *after) >= inference_speedup(run.operations, *before)


@given(runs(), st.randoms(use_true_random=False))
def test_the_order_of_layers_does_not_matter(run, random):
    order = list(range(len(run.layers)))
    random.shuffle(order)
    shuffled = run.word_length[:, order], run.nonzero[:, order]
    assert size_ratio(*shuffled, run.numel[order]) == approx(size_ratio(run.word_length, run.nonzero, run.numel))
    assert memory_ratio(*shuffled) == approx(memory_ratio(run.word_length, run.nonzero))
    speedups = (
        inference_speedup(run.operations[order], *shuffled),
        inference_speedup(run.operations, run.word_length, run.nonzero),
    )
    assert speedups[0] == approx(speedups[1])


def test_the_papers_tables_come_out_for_plausible_runs():
    """Tables 3 and 6, ResNet-20 on CIFAR-10: SZ 0.60, SU 1.63, MEM 1.63."""
    assert size_ratio([[19.5] * 20], [[0.96] * 20]) == pytest.approx(0.60, abs=0.02)
    assert inference_speedup([1] * 20, [19.5] * 20, [0.96] * 20) == pytest.approx(1.63, abs=0.1)
    assert memory_ratio(np.full((5, 20), 20.5), np.full((5, 20), 0.97)) == pytest.approx(1.63, abs=0.02)


def test_the_last_row_alone_decides_size_and_inference():
    first, last = [32, 32], [8, 4]
    assert size_ratio([first, last], [[1, 1], [1, 0.5]]) == size_ratio(last, [1, 0.5]) == (8 + 2) / 64
    assert inference_speedup([1, 3], [first, last], 1.0) == 128 / (8 + 12)


def test_layers_are_weighted_by_their_elements_where_given():
    assert size_ratio([8, 32], [1, 1]) == 40 / 64
    assert size_ratio([8, 32], [1, 1], [3, 1]) == (3 * 8 + 32) / 128
    assert memory_ratio([8, 32], [1, 1], [3, 1]) == (3 * 40 + 64) / 128


def test_a_network_of_zeros_costs_nothing():
    assert size_ratio([8], [0.0]) == 0
    assert inference_speedup([5], [8], [0.0]) == math.inf


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: size_ratio([[8, 8]], [[1, 1]], [1, 2, 3]), "numel must hold the sizes of 2 layers"),
        (lambda: memory_ratio([[8, 8]], [[1, 1]], [0, 0]), "numel must hold the sizes of 2 layers, not all zero"),
        (lambda: size_ratio([[-1, 8]], [[1, 1]]), "word_length must be between 0 and 32, got -1"),
        (lambda: size_ratio([[8, 8]], [[1, 1, 1]]), r"must be \[rows, layers\]"),
        (lambda: inference_speedup([1, 2, 3], [[8, 8]], [[1, 1]]), r"must be \[rows, 3\] like operations"),
        (lambda: size_ratio(np.zeros((1, 1, 1)), 1.0), r"must be \[rows, layers\]"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("ratio", [size_ratio, memory_ratio])
@pytest.mark.parametrize(
    ("arguments", "name"),
    [(("eight", 0.5), "word_length"), ((8, [[1.0], [1.0, 1.0]]), "nonzero"), ((8, 0.5, {"a": 1}), "numel")],
)
def test_non_numbers_are_refused_by_argument_name(ratio, arguments, name):
    with pytest.raises(TypeError, match=f"{name} must be a number or a regular array of numbers"):
        ratio(*arguments)
