import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapt.numerics import Precision
from adapt.rounding import quantize, set_backend
from adapt.switching import divergence, push_down
from adapt.switching.divergence import below, bin_counts, bin_edges
from adapt.switching.pushdown import Candidates, candidates, lowest_precision, rounded_below
from tests.references import adapt_equations as reference
from tests.switching.weights import tensors

TOLERANCES = st.one_of(st.just(0.0), st.floats(1e-4, 3.0))


@given(tensors(12), st.integers(1, 10), TOLERANCES)
def test_equals_the_literal_algorithm(weights, resolution, tolerance):
    answer = push_down(torch.from_numpy(weights), resolution=resolution, tolerance=tolerance)
    assert (answer.word_length, answer.fraction_length) == reference.push_down(weights, resolution, tolerance)


@given(tensors(300, exponents=(-140, 120)), st.integers(1, 150), TOLERANCES)
def test_the_answer_passes_and_the_next_coarser_format_fails(weights, resolution, tolerance):
    w = torch.from_numpy(weights)
    answer, lost = lowest_precision(w, resolution=resolution, tolerance=tolerance)
    assert answer == push_down(w, resolution=resolution, tolerance=tolerance)
    assert lost == divergence(w, quantize(w, answer), resolution)
    if not weights.any():
        return
    formats = candidates(float(np.abs(weights).max()), w.dtype).formats
    place = formats.index(answer)
    assert lost <= tolerance or answer == formats[-1]
    if place > 0:
        assert divergence(w, quantize(w, formats[place - 1]), resolution) > tolerance


@settings(max_examples=2 * settings.default.max_examples)
@given(
    tensors(60, exponents=(-110, 110)),
    st.integers(1, 40),
    st.integers(2, 32),
    st.integers(-4, 4),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_moved_edges_count_what_rounding_and_saturating_would(weights, resolution, word_length, spare_bits, dtype):
    w = torch.from_numpy(weights).to(dtype)
    # From formats that cut the largest weight to a sixteenth to formats that leave four integer bits unused.
    needed = math.frexp(w.abs().max().item())[1] + 1
    precision = Precision(word_length, min(max(word_length - needed - spare_bits, -126), 126))
    edges = bin_edges(w.min().item(), w.max().item(), resolution)
    moved = bin_counts(w, rounded_below(edges, Candidates.of([precision], dtype)))[0]
    rounded = bin_counts(quantize(w, precision), below(edges))
    assert moved.tolist() == rounded.tolist()


@pytest.mark.covering(1)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("denominator", [1, 4, 1024])
def test_every_candidate_is_judged_by_its_own_rounding(dtype, denominator):
    generator = torch.Generator().manual_seed(denominator)
    # Sixteenths of a power of two: full of ties at every step that halves one.
    w = (torch.randint(-160, 161, (40, 50), generator=generator) / (16 * denominator)).to(dtype)
    w[0, :25] += torch.randn(25, generator=generator).to(dtype) / denominator
    low, high = w.min().item(), w.max().item()
    edges = bin_edges(low, high, 64)
    grids = candidates(max(-low, high), dtype)
    for precision, moved in zip(grids.formats, rounded_below(edges, grids), strict=True):
        rounded = bin_counts(quantize(w, precision).double(), below(edges))
        assert bin_counts(w.double(), moved).tolist() == rounded.tolist(), precision


@given(st.floats(2**-126, 2.0**100), st.integers(-126, 126))
def test_candidates_have_the_fewest_integer_bits(largest, fraction_length):
    formats = {
        precision.fraction_length: precision.word_length for precision in candidates(largest, torch.float64).formats
    }
    expected = reference.word_length(largest, fraction_length)
    assert formats.get(fraction_length) == (expected if 2 <= expected <= 32 else None)
    assert sorted(formats) == list(range(min(formats), max(formats) + 1))


@given(tensors(100, exponents=(-3, 3)), st.integers(1, 60), TOLERANCES, st.integers(-40, 40))
def test_scaling_by_a_power_of_two_shifts_the_fraction_alone(weights, resolution, tolerance, exponent):
    weights = weights[np.abs(weights) > 2.0**-40]
    if not weights.size:
        return
    answer = push_down(torch.from_numpy(weights), resolution=resolution, tolerance=tolerance)
    scaled = push_down(torch.from_numpy(np.ldexp(weights, exponent)), resolution=resolution, tolerance=tolerance)
    assert scaled == Precision(answer.word_length, answer.fraction_length - exponent)


@given(tensors(100), st.integers(1, 60), TOLERANCES, st.randoms())
def test_order_does_not_matter(weights, resolution, tolerance, random):
    answer = push_down(torch.from_numpy(weights), resolution=resolution, tolerance=tolerance)
    shuffled = weights.tolist()
    random.shuffle(shuffled)
    assert push_down(torch.tensor(shuffled), resolution=resolution, tolerance=tolerance) == answer


@given(tensors(100), st.integers(1, 60), TOLERANCES, TOLERANCES)
def test_more_tolerance_never_asks_for_more_bits(weights, resolution, one, other):
    w = torch.from_numpy(weights)
    strict = push_down(w, resolution=resolution, tolerance=min(one, other))
    lenient = push_down(w, resolution=resolution, tolerance=max(one, other))
    assert lenient.fraction_length <= strict.fraction_length
    assert lenient.word_length <= strict.word_length


@given(tensors(200), st.integers(1, 100))
def test_no_tolerance_means_equal_histograms(weights, resolution):
    w = torch.from_numpy(weights)
    answer = push_down(w, resolution=resolution, tolerance=0.0)
    low, high = float(weights.min()), float(weights.max())
    if low == high or answer.word_length == 32 or answer.fraction_length == 126:
        return
    thresholds = below(bin_edges(low, high, resolution))
    original = bin_counts(w, thresholds)
    assert bin_counts(quantize(w, answer), thresholds).tolist() == original.tolist()


def test_a_grid_is_found_again():
    # Every multiple of 1/16 in [−8, 8), one to a bin: only the grid itself keeps all 256 bins alike.
    w = torch.arange(-128, 128) / 16
    assert push_down(w, resolution=256, tolerance=0.0) == Precision(9, 4)
    assert push_down(w[1:], resolution=255, tolerance=0.0) == Precision(8, 4)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1.0, Precision(2, 0)),
        (-1.0, Precision(2, 0)),
        (0.75, Precision(2, 0)),
        (0.5, Precision(2, 1)),
        (3.4e38, Precision(4, -126)),
        (1e-30, Precision(2, 99)),
        (1e-44, Precision(2, 126)),
        (0.0, Precision(2, 0)),
    ],
)
def test_constant_tensors_take_two_bits_where_two_bits_reach(value, expected):
    for shape in ((1,), (3, 4), ()):
        assert push_down(torch.full(shape, value), resolution=50, tolerance=0.0) == expected


def test_an_empty_tensor_has_an_answer():
    assert push_down(torch.zeros(0, 3), resolution=50, tolerance=0.01) == Precision(2, 0)


def test_the_finest_format_answers_where_none_passes():
    # Edge 0 parts −1e−30 from 1e−30; no step that reaches ±1 in 32 bits tells them apart.
    w = torch.tensor([-1.0, -1e-30, -1e-30, 1e-30, 1.0])
    answer, lost = lowest_precision(w, resolution=2, tolerance=0.0)
    assert answer == Precision(32, 30)
    assert lost > 0


@pytest.mark.parametrize(("small", "looks"), [(1e-2, 1), (1e-7, 2)])
def test_only_long_words_take_a_second_look_at_the_weights(small, looks, monkeypatch):
    # Edge 0 parts the small ones as soon as the step reaches them.
    weights = np.array([-1.0, -small, -small, small, 1.0], np.float32)
    counted = []

    def spy(values, thresholds):
        counted.append(thresholds)
        return bin_counts(values, thresholds)

    monkeypatch.setattr("adapt.switching.pushdown.bin_counts", spy)
    answer = push_down(torch.from_numpy(weights), resolution=2, tolerance=0.0)
    assert len(counted) == looks
    assert (answer.word_length, answer.fraction_length) == reference.push_down(weights, 2, 0.0)


@pytest.mark.covering(1)
@pytest.mark.parametrize("scale", [1e30, 1e-30, 1e-34, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_extreme_weights_keep_their_divergence(scale, dtype):
    w = (torch.randn(2000, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * scale).to(dtype)
    answer, lost = lowest_precision(w, resolution=80, tolerance=0.05)
    assert lost == divergence(w, quantize(w, answer), 80) <= 0.05
    assert answer.maximum + answer.step / 2 >= w.abs().max().item()
    assert 6 <= answer.word_length <= 12


def test_layout_and_gradients_do_not_matter():
    w = torch.randn(8, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    answer = push_down(w, resolution=60, tolerance=0.01)
    for same in (w.to(memory_format=torch.channels_last), w.permute(3, 0, 2, 1), torch.nn.Parameter(w), w.double()):
        assert push_down(same, resolution=60, tolerance=0.01) == answer
    before = w.clone()
    assert torch.equal(w, before)


@given(tensors(300), st.integers(1, 150), TOLERANCES)
def test_every_back_end_answers_the_same(weights, resolution, tolerance):
    w = torch.from_numpy(weights)
    expected = lowest_precision(w, resolution=resolution, tolerance=tolerance)
    set_backend("torch")
    try:
        assert lowest_precision(w, resolution=resolution, tolerance=tolerance) == expected
    finally:
        set_backend(None)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@given(tensors(300), st.integers(1, 150), TOLERANCES)
def test_cuda_answers_as_the_cpu_does(weights, resolution, tolerance):
    w = torch.from_numpy(weights)
    expected = lowest_precision(w, resolution=resolution, tolerance=tolerance)
    assert lowest_precision(w.cuda(), resolution=resolution, tolerance=tolerance) == expected


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_refuses_weights_without_a_bin(bad):
    with pytest.raises(ValueError, match="weights must be finite"):
        push_down(torch.tensor([0.0, bad, 1.0]), resolution=50, tolerance=0.01)


def test_refuses_nonsense():
    w = torch.randn(3)
    for tolerance in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="tolerance must be a finite number of bits, at least 0"):
            push_down(w, resolution=50, tolerance=tolerance)
    with pytest.raises(ValueError, match="resolution must be at least 1 bin, got -3"):
        push_down(w, resolution=-3, tolerance=0.01)
    with pytest.raises(TypeError, match="weights must be a floating-point tensor"):
        push_down(torch.arange(3), resolution=50, tolerance=0.01)
    with pytest.raises(ValueError, match="weights reach 1e\\+60, beyond what a fixed-point format of 32 bits can hold"):
        push_down(torch.tensor([1.0, 1e60], dtype=torch.float64), resolution=50, tolerance=0.01)
