"""quantize, grid and stream_keys against exact rational arithmetic, and the draws against the uniform distribution."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import grad as gradient_of
from torch.func import vmap

from adapt import Precision
from adapt.rounding import grid, quantize, set_backend, stream_keys
from tests.references import fixed_point

BACKENDS = ["torch", "numba"]
FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]

precisions = st.builds(Precision, st.integers(2, 32), st.integers(-32, 64))


@pytest.fixture(params=BACKENDS, autouse=True)
def each_backend(request):
    set_backend(request.param)
    yield
    set_backend(None)


@st.composite
def hard_cases(draw, dtype):
    """A format and a value at which rounding is likely to go wrong."""
    precision = draw(precisions)
    width = 64 if dtype == torch.float64 else 32
    step, words = precision.step, 2 ** (precision.word_length - 1)
    count = draw(st.integers(-words - 2, words + 2) | st.sampled_from([-words, words - 1, 0]))
    place = draw(st.sampled_from(["grid", "tie", "third", "beside", "any"]))
    if place == "any":
        x = draw(st.floats(width=width, allow_nan=True, allow_infinity=True, allow_subnormal=True))
    else:
        x = {"grid": count, "tie": count + 0.5, "third": count + 1 / 3, "beside": count + 0.5}[place] * step
    x = torch.tensor(x, dtype=torch.float64).to(dtype)
    if place == "beside":
        x = torch.nextafter(x, torch.tensor(draw(st.sampled_from([-math.inf, math.inf])), dtype=dtype))
    return precision, float(x)


def same(result: float, candidates: list[float]) -> bool:
    return any(result == candidate or (math.isnan(result) and math.isnan(candidate)) for candidate in candidates)


@pytest.mark.parametrize("dtype", FLOATS)
@settings(max_examples=4 * settings.default.max_examples)
@given(data=st.data())
def test_nearest_is_the_exact_result(dtype, data):
    precision, x = data.draw(hard_cases(dtype))
    result = quantize(torch.tensor(x, dtype=dtype), precision).item()
    expected = fixed_point.quantize(x, precision.word_length, precision.fraction_length, dtype)
    assert same(result, expected)


@pytest.mark.parametrize("dtype", FLOATS)
@settings(max_examples=4 * settings.default.max_examples)
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_stochastic_is_the_exact_result_of_its_draw(dtype, data, seed):
    precision, x = data.draw(hard_cases(dtype))
    result = quantize(
        torch.full((5,), x, dtype=dtype),
        precision,
        rounding="stochastic",
        generator=torch.Generator().manual_seed(seed),
    )
    halves = torch.randint(0, 2**32, (2,), generator=torch.Generator().manual_seed(seed)).tolist()
    for index, value in enumerate(result.tolist()):
        draw = fixed_point.uniform(halves[0] | halves[1] << 32, index)
        assert same(value, fixed_point.quantize(x, precision.word_length, precision.fraction_length, dtype, draw))


@settings(max_examples=4 * settings.default.max_examples)
@given(precision=precisions, seed=st.integers(0, 2**32), rounding=st.sampled_from(["nearest", "stochastic"]))
def test_results_are_grid_values_in_range_less_than_a_step_away(precision, seed, rounding):
    x = torch.randn(64, generator=torch.Generator().manual_seed(seed)) * precision.step * 2.0 ** (seed % 33)
    result = quantize(x, precision, rounding=rounding)
    for before, after in zip(x.tolist(), result.tolist(), strict=True):
        assert (Fraction(after) / Fraction(precision.step)).denominator == 1
        assert precision.minimum <= after <= precision.maximum
        if precision.minimum <= before <= after or after <= before <= float(grid(precision)[3]) * precision.step:
            distance = abs(Fraction(before) - Fraction(after)) / Fraction(precision.step)
            assert distance <= Fraction(1, 2) if rounding == "nearest" else distance < 1


@pytest.mark.parametrize("word_length", [2, 8, 16, 23, 24, 25, 26, 32])
@pytest.mark.parametrize("fraction_length", [-32, 0, 12, 64])
def test_values_on_the_grid_never_move(word_length, fraction_length):
    precision = Precision(word_length, fraction_length)
    words = 2 ** (word_length - 1)
    counts = torch.randint(-words, words, (200_000,), generator=torch.Generator().manual_seed(word_length))
    # Beyond 24 bits not every count is a float32; truncation leaves one that is, and inside the range.
    counts = counts.sign() * (counts.abs() & -(2 ** max(word_length - 25, 0)))
    x = (counts.double() * precision.step).float()
    assert torch.equal(quantize(x, precision, rounding="stochastic"), x)
    assert torch.equal(quantize(x, precision), x)


def test_the_usual_formula_would_move_values_on_the_grid():
    """Why the draw is compared with the fraction: ⌊x·2^FL + u⌋ rounds its sum in float32."""
    counts = torch.randint(-(2**23), 2**23, (200_000,), generator=torch.Generator().manual_seed(0)).float()
    u = torch.rand(200_000, generator=torch.Generator().manual_seed(1))
    moved = ((counts + u).floor() != counts).double().mean()
    assert 0.16 < moved < 0.175


@pytest.mark.parametrize(
    ("word_length", "maximum"),
    [(23, 2**22 - 1), (24, 2**23 - 1), (25, 2**24 - 1), (26, 2**25 - 2), (27, 2**26 - 4), (32, 2**31 - 128)],
)
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_float32_holds_every_grid_value_up_to_word_length_25(word_length, maximum, rounding):
    ends = quantize(torch.tensor([-math.inf, -3e38, 3e38, math.inf]), Precision(word_length, 0), rounding=rounding)
    assert ends.tolist() == [-(2 ** (word_length - 1))] * 2 + [maximum] * 2


@pytest.mark.parametrize(
    ("dtype", "exact", "simulated"), [(torch.float16, (12, 2047), (13, 4094)), (torch.bfloat16, (9, 255), (10, 510))]
)
def test_half_types_hold_every_grid_value_up_to_one_bit_above_their_significand(dtype, exact, simulated):
    for word_length, maximum in (exact, simulated):
        assert quantize(torch.tensor(6e4, dtype=dtype), Precision(word_length, 0)).item() == maximum


@pytest.mark.parametrize("fraction_length", [-16, -15, 0, 10, 24, 30])
def test_every_float16_value_stays_finite_and_exact(fraction_length):
    x = torch.arange(-(2**15), 2**15, dtype=torch.int16)[::29].view(torch.float16)
    result = quantize(x, Precision(14, fraction_length))
    low, high = fixed_point.bounds(14, fraction_length, torch.float16)
    assert high <= Fraction(65504)
    for before, after in zip(x.tolist(), result.tolist(), strict=True):
        assert same(after, fixed_point.quantize(before, 14, fraction_length, torch.float16))
        assert math.isnan(after) or low <= Fraction(after) <= high


@pytest.mark.parametrize("fraction_length", [-126, -125, 126])
@pytest.mark.parametrize("word_length", [2, 4, 32])
def test_extreme_fraction_lengths_stay_finite(word_length, fraction_length):
    x = torch.tensor([3e38, -3e38, 1e-38, -1e-38, 2e-45, math.inf, math.nan, 2.0**126])
    for value, result in zip(x.tolist(), quantize(x, Precision(word_length, fraction_length)).tolist(), strict=True):
        assert same(result, fixed_point.quantize(value, word_length, fraction_length, torch.float32))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("precision", [Precision(8, 4), Precision(32, 40), Precision(17, -3)])
def test_grid_row(dtype, precision):
    scale, step, low, high = grid(precision, dtype).tolist()
    assert (scale, step) == (2.0**precision.fraction_length, precision.step)
    expected = fixed_point.bounds(precision.word_length, precision.fraction_length, dtype)
    assert (Fraction(low) * Fraction(step), Fraction(high) * Fraction(step)) == expected
    assert grid(precision, dtype).dtype == (np.float64 if dtype == torch.float64 else np.float32)


def test_grid_of_no_format_is_float32_and_rows_cannot_be_changed():
    assert grid(None).tolist() == [0, 0, 0, 0]
    with pytest.raises(ValueError, match="read-only"):
        grid(Precision(8, 4))[0] = 1
    with pytest.raises(TypeError, match="dtype"):
        grid(Precision(8, 4), torch.int32)


def layouts(dtype):
    x = (torch.randn(4, 6, 5, 3, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)
    return {
        "contiguous": x,
        "channels_last": x.to(memory_format=torch.channels_last),
        "permuted": x.permute(2, 0, 3, 1),
        "strided": x[1:, ::2, :, ::2],
        "expanded": x[:, :1].expand(4, 6, 5, 3),
        "scalar": x[0, 0, 0, 0],
        "empty": x[:0],
        "shifted": x.view(-1)[1:],
    }


@pytest.mark.covering(2)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("layout", layouts(torch.float32))
def test_layouts(layout, rounding, dtype):
    x = layouts(dtype)[layout]
    before = x.clone()
    result = quantize(x, Precision(12, 4), rounding=rounding, generator=torch.Generator().manual_seed(3))
    assert torch.equal(x, before)
    assert (result.shape, result.dtype, result.device) == (x.shape, x.dtype, x.device)
    assert result.stride() == torch.empty_like(x).stride()
    assert x.numel() == 0 or result.data_ptr() != x.data_ptr()
    # The same values laid out alike in fresh memory draw the same numbers.
    again = quantize(
        torch.empty_like(x).copy_(x), Precision(12, 4), rounding=rounding, generator=torch.Generator().manual_seed(3)
    )
    assert torch.equal(result, again)
    if rounding == "nearest":
        assert torch.equal(result, quantize(x.contiguous(), Precision(12, 4)))
    else:
        assert ((result - x).abs() < 1 / 16).all()


def test_a_generator_is_reproducible_and_advances():
    x, precision = torch.randn(1000), Precision(8, 4)
    first, second = (
        [quantize(x, precision, rounding="stochastic", generator=g) for _ in range(2)]
        for g in (torch.Generator().manual_seed(5), torch.Generator().manual_seed(5))
    )
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], first[1])


def test_the_default_generator_is_torchs_own():
    results = []
    for _ in range(2):
        torch.manual_seed(9)
        results.append(quantize(torch.linspace(-1, 1, 1000), Precision(6, 4), rounding="stochastic"))
    assert torch.equal(*results)
    state = torch.get_rng_state()
    quantize(torch.ones(3), Precision(6, 4))
    assert torch.equal(state, torch.get_rng_state()), "nearest rounding draws nothing"


def test_the_result_carries_no_gradient():
    x = torch.randn(3, requires_grad=True)
    assert not quantize(x, Precision(8, 4)).requires_grad


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_in_one_graph_it_gives_the_same(rounding, dtype):
    def rounded(x, precision):
        return quantize(x * 2, precision, rounding=rounding)

    x = torch.randn(8, 5, 3, 3, requires_grad=True).to(dtype, memory_format=torch.channels_last)
    compiled = torch.compile(rounded, backend="eager", fullgraph=True)
    for precision in (Precision(8, 4), Precision(5, 3)):
        torch.manual_seed(0)
        expected = rounded(x, precision)
        torch.manual_seed(0)
        result = compiled(x, precision)
        assert torch.equal(result, expected)
        assert result.stride() == expected.stride()
        assert not result.requires_grad


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"x": torch.ones(2, dtype=torch.int32)}, TypeError, "x must be a float32.*int32"),
        ({"x": torch.ones(2, dtype=torch.complex64)}, TypeError, "x must be a float32.*complex64"),
        ({"x": [1.0]}, TypeError, "x must be .*list"),
        ({"precision": (8, 4)}, TypeError, r"precision must be an adapt.Precision, got \(8, 4\)"),
        ({"precision": None}, TypeError, "precision"),
        ({"rounding": "up"}, ValueError, "rounding must be .*'up'"),
        ({"generator": 3}, TypeError, "generator must be a torch.Generator or None, got 3"),
    ],
)
def test_bad_input_is_refused(arguments, error, words):
    with pytest.raises(error, match=words):
        quantize(**{"x": torch.ones(2), "precision": Precision(8, 4), **arguments})


@pytest.mark.parametrize("fraction", [2**-10, 0.1, 0.25, 0.5, 0.75, 0.999])
@pytest.mark.parametrize("whole", [-3, 0, 5])
def test_stochastic_rounding_is_unbiased(whole, fraction):
    """Each mean of 2^20 values lies within 5.1 standard errors: an ideal stream fails one of the 36 with p < 2e-5."""
    numel = 2**20
    x = np.float32(whole + fraction)
    result = quantize(
        torch.full((numel,), float(x)),
        Precision(8, 0),
        rounding="stochastic",
        generator=torch.Generator().manual_seed(11),
    ).double()
    share = float(x) - whole
    assert abs(result.mean().item() - float(x)) < 5.1 * math.sqrt(share * (1 - share) / numel) + 2**-24
    assert set(result.unique().tolist()) == {whole, whole + 1}


def test_stream_keys_depend_on_seed_step_and_name_alone():
    keys = stream_keys(1, 2, ["a", "b", "c"])
    assert keys.dtype == np.uint64
    assert np.array_equal(keys, stream_keys(1, 2, ("a", "b", "c")))
    assert stream_keys(1, 2, ["c"])[0] == keys[2]
    different = [keys, stream_keys(0, 2, ["a", "b", "c"]), stream_keys(1, 3, ["a", "b", "c"])]
    assert len(np.unique(np.concatenate(different))) == 9
    assert len(stream_keys(1, 2, [])) == 0


def test_stream_keys_do_not_collide_over_steps_and_layers():
    """200,000 random 64-bit keys share a value with p = 1e-9; their low halves with p ≈ 1 collide about 5 times."""
    names = [f"layers.{i}.weight" for i in range(100)]
    keys = np.concatenate([stream_keys(-7, step, names) for step in range(2000)])
    assert len(np.unique(keys)) == len(keys)
    repeats = len(keys) - len(np.unique(keys & np.uint64(0xFFFFFFFF)))
    assert repeats < 25


def test_stream_keys_take_any_seed_and_step():
    extreme = [stream_keys(seed, step, ["a"])[0] for seed in (-1, 2**70) for step in (0, 2**63, 2**64 - 1)]
    assert len(set(extreme)) == 6


def test_tensors_marked_as_negated_are_negated():
    """For example the imaginary part of a conjugate, which is a view."""
    x = torch.tensor([1 + 2j, 3 - 4j]).conj().imag
    assert x.is_neg()
    assert quantize(x, Precision(8, 2)).tolist() == [-2.0, 4.0]


@pytest.mark.parametrize("dim", [0, 1])
def test_vmap_and_grad_see_one_operation(dim):
    x = torch.randn(5, 3)
    precision = Precision(8, 4)
    assert torch.equal(vmap(lambda row: quantize(row, precision), dim, dim)(x), quantize(x, precision))
    assert torch.equal(gradient_of(lambda t: (t * quantize(t, precision)).sum())(x), quantize(x, precision))
