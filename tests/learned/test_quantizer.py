"""Rounding with a learned step and range, against a literal twin and the slopes of the smoothed function."""

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from adapt.learned import SCALINGS, lsq, quantize, word_length
from adapt.learned.lsq import bounds, gradient_scale, initial_step, nearest_power_of_two
from adapt.learned.quantizer import is_sign, limit, range_gradients, range_row
from tests.references import learned as twin

VALUES = st.floats(-4, 4, width=32)
STEPS = st.floats(1 / 64, 0.5, width=32)


def slopes(function, arguments, width=1e-6):
    """Central differences of a function of several numbers, in double precision."""
    found = []
    for i in range(len(arguments)):
        up, down = list(arguments), list(arguments)
        up[i] += width
        down[i] -= width
        found.append((function(*up) - function(*down)) / (2 * width))
    return found


@given(x=VALUES, d=STEPS, ratio=st.floats(1, 40), signed=st.booleans())
def test_forward_is_the_formula(x, d, ratio, signed):
    d, q = torch.tensor(d).double(), torch.tensor(d * ratio).double()
    found = quantize(torch.tensor(x).double(), d, q, signed=signed)
    ratio = min(float(q / d), float(limit(word_length(d, q, signed), signed)))
    expected = twin.rounded(x, float(d), -ratio if signed else 0.0, ratio)
    assert found.item() == pytest.approx(expected, abs=1e-9) or abs(abs((x / float(d)) % 1 - 0.5)) < 1e-6


@given(
    x=VALUES,
    d=STEPS,
    ratio=st.floats(1.05, 40),
    g=st.sampled_from([-1.5, 0.7]),
    signed=st.booleans(),
    scaling=st.sampled_from(SCALINGS),
)
def test_gradients_are_those_of_the_smoothed_function(x, d, ratio, g, signed, scaling):
    q, delta = d * ratio, 0.3
    lower = -q if signed else 0.0
    # Central differences need a neighbourhood without a corner.
    if min(abs(x - lower), abs(x - q)) < 1e-3:
        return
    at = (x, d, lower, q)

    def smooth(x, d, q):
        return g * twin.smooth(x, d, -q if signed else 0.0, q, 0.0, at, scaling, delta, g)

    expected = slopes(smooth, (x, d, q))
    arguments = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (x, d, q)]
    result = quantize(*arguments, signed=signed, scaling=scaling, delta=delta)
    found = torch.autograd.grad(result, arguments, torch.tensor(g, dtype=torch.float64))
    assert [float(v) for v in found] == pytest.approx(expected, abs=1e-5, rel=1e-5)


def test_gradients_of_channels_are_sums_over_their_elements():
    torch.manual_seed(0)
    x = torch.randn(3, 5, 2, dtype=torch.float64)
    d = torch.tensor([0.1, 0.2, 0.4], dtype=torch.float64).view(3, 1, 1).requires_grad_()
    q = torch.tensor([1.0, 1.5, 0.8], dtype=torch.float64).view(3, 1, 1).requires_grad_()
    g = torch.randn_like(x)
    together = torch.autograd.grad(quantize(x, d, q, scaling="tanh"), (d, q), g)
    for c in range(3):
        alone = torch.autograd.grad(quantize(x[c], d[c], q[c], scaling="tanh"), (d, q), g[c])
        for one, both in zip(alone, together, strict=True):
            torch.testing.assert_close(one[c], both[c])


@given(d=STEPS, ratio=st.floats(0.05, 1000), signed=st.booleans())
def test_word_length_is_the_formula(d, ratio, signed):
    d, q = torch.tensor([d]), torch.tensor([d * ratio])
    assert word_length(d, q, signed).tolist() == [twin.word_length(float(d), float(q), signed)]


@pytest.mark.covering(1)
@pytest.mark.parametrize("bits", range(2, 12))
@pytest.mark.parametrize("signed", [True, False])
def test_a_word_of_so_many_bits_has_that_length_and_its_levels(bits, signed):
    d = torch.tensor([0.037])
    q = d * limit(bits, signed)
    assert word_length(d, q, signed).item() == bits
    x = torch.linspace(-2 * float(q), 2 * float(q), 2**15 + 1)
    levels = quantize(x, d, q, signed=signed).unique().numel()
    assert levels == (2**bits - 1 if signed else 2**bits)


def test_one_bit_is_the_sign_times_the_range():
    x = torch.tensor([-3.0, -0.1, 0.0, 0.2, 5.0], dtype=torch.float64)
    d, q = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (1.2, 0.5))
    assert word_length(d, q, True, floor=1).item() == 1
    result = quantize(x, d, q, floor=1)
    assert result.tolist() == [-0.5, -0.5, 0.5, 0.5, 0.5]
    g = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0], dtype=torch.float64)
    to_d, to_q = torch.autograd.grad(result, (d, q), g)
    # Outside ±q the sign; inside it less x/q, of the smoothed function.
    assert to_q.item() == pytest.approx(-1 + 2 * (-1 + 0.2) + 4 * 1 + 8 * (1 - 0.4) + 16)
    assert to_d.item() == 0


def test_two_bits_have_room_between_three_and_one():
    d = torch.ones(4)
    q = torch.tensor([1.01, 0.99, 0.51, 0.49])
    assert word_length(d, q, True, floor=1).tolist() == [3, 2, 2, 1]
    assert quantize(torch.tensor([-2.0, 0.3, 2.0]), d[2], q[2], floor=1).tolist() == [-1, 0, 1]


def test_unsigned_one_bit_has_two_levels():
    d = torch.tensor([0.5])
    assert word_length(d, d, False, floor=1).item() == 1
    assert quantize(torch.tensor([-1.0, 0.2, 0.3, 9.0]), d, d, signed=False, floor=1).tolist() == [0, 0, 0.5, 0.5]


@given(st.integers(0, 2**31), st.sampled_from([1, 2]), st.booleans())
@example(3928, 1, False)  # a range within the slack of its word
def test_closed_form_of_the_sums_is_autograds(seed, floor, signed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4, 50, generator=generator, dtype=torch.float64)
    g = torch.randn(4, 50, generator=generator, dtype=torch.float64)
    d = torch.rand(4, generator=generator, dtype=torch.float64) + 0.1
    q = d * (0.2 + 3 * torch.rand(4, generator=generator, dtype=torch.float64))
    # The row cuts a range that a word misses by a rounding error; the formula takes it as it is given.
    widest = d * limit(word_length(d, q, signed, floor=floor), signed)
    q = torch.where(is_sign(d, q, signed, floor), q, torch.minimum(q, widest))
    from adapt.kernels.learned_steps import Row, partials

    row = Row(*(column[:, None] for column in range_row(d, q, signed, floor=floor)))
    back = partials(g, x, row, "ewgs", 0.1)
    closed = range_gradients([t.sum(1) for t in back[1:]], d, q, signed, floor=floor)
    leaves = d.clone().requires_grad_(), q.clone().requires_grad_()
    result = quantize(x, *(leaf[:, None] for leaf in leaves), signed=signed, scaling="ewgs", delta=0.1, floor=floor)
    for one, other in zip(closed, torch.autograd.grad(result, leaves, g), strict=True):
        torch.testing.assert_close(one, other)


def test_nan_stays():
    one = torch.ones(())
    assert math.isnan(quantize(torch.tensor(math.nan), 0.1 * one, one).item())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scaling": "linear"}, 'scaling must be "ste"'),
        ({"delta": -0.1}, "delta must lie between"),
        ({"floor": 3}, "floor must be 1 or 2"),
        ({"step": torch.zeros(())}, "step and maximum must be above 0"),
    ],
)
def test_refusals(options, message):
    arguments = {"step": torch.ones(()), "maximum": torch.ones(()), **options}
    with pytest.raises(ValueError, match=message):
        quantize(torch.ones(3), **arguments)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda one: quantize(one, 0.1, one), "step"),
        (lambda one: quantize(one, one, 0.1), "maximum"),
        (lambda one: lsq(one, 0.1, 4), "step"),
    ],
)
def test_numbers_in_the_place_of_tensors_are_refused(call, name):
    with pytest.raises(TypeError, match=rf"{name} must be a tensor, got 0\.1: pass torch\.tensor\(0\.1\)"):
        call(torch.ones(()))


@pytest.mark.parametrize("x", [[1.0], 1.0, torch.tensor([1]), torch.tensor([True])], ids=str)
def test_values_that_are_no_floating_point_tensor_are_refused(x):
    one = torch.ones(())
    for call in (lambda: quantize(x, one, one), lambda: lsq(x, one, 4)):
        with pytest.raises(TypeError, match=r"^x must be a (floating-point )?tensor, got "):
            call()
    with pytest.raises(TypeError, match=r"step must be a floating-point tensor, got torch\.int64"):
        lsq(one, torch.tensor(1), 4)


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_steps_and_ranges_are_positive_and_finite(value):
    one, wrong = torch.ones(()), torch.tensor(value)
    for call in (lambda: quantize(one, wrong, one), lambda: quantize(one, one, wrong), lambda: lsq(one, wrong, 4)):
        with pytest.raises(ValueError, match="must be above 0 everywhere, and finite"):
            call()


# LSQ


@pytest.mark.covering(1)
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("signed", [True, False])
def test_lsq_is_its_equations(bits, signed):
    torch.manual_seed(bits)
    x = torch.randn(200, dtype=torch.float64)
    d = initial_step(x.abs().mean(), bits, signed=signed).requires_grad_()
    low, high = bounds(bits, signed=signed)
    result = lsq(x, d, bits, signed=signed)
    values = x.tolist()
    if signed and bits == 1:
        expected = [math.copysign(d.item(), v) for v in values]
        slope = [math.copysign(1, v) - max(min(v / d.item(), 1), -1) for v in values]
        # Beyond ±d the level is the end: its slope is the sign.
        slope = [math.copysign(1, v) if abs(v) > d.item() else s for v, s in zip(values, slope, strict=True)]
    else:
        expected = [twin.rounded(v, d.item(), low, high) for v in values]
        slope = [twin.lsq_gradient(v, d.item(), low, high) for v in values]
    assert result.tolist() == pytest.approx(expected)
    g = torch.randn_like(x)
    (found,) = torch.autograd.grad(result, d, g)
    factor = 1 / math.sqrt(200 * high)
    assert gradient_scale(200, bits, signed=signed) == pytest.approx(factor)
    assert found.item() == pytest.approx(factor * sum(a * b for a, b in zip(g.tolist(), slope, strict=True)))
    assert len(set(result.tolist())) <= 2**bits


def test_lsq_gradient_to_the_values_is_one_inside_and_zero_outside():
    x = torch.tensor([-5.0, -1.9, 0.3, 0.9, 1.2], requires_grad=True)
    lsq(x, torch.tensor(1.0), 2).sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 0]


def test_lsq_per_channel_scales_each_gradient_by_its_own_numbers():
    x = torch.tensor([[0.4, 1.3], [0.1, -7.0]], dtype=torch.float64)
    d = torch.tensor([[0.5], [0.25]], dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(lsq(x, d, 3).sum(), d)
    for c in range(2):
        expected = sum(twin.lsq_gradient(v, d[c].item(), -4, 3) for v in x[c].tolist()) / math.sqrt(2 * 3)
        assert found[c].item() == pytest.approx(expected)


def test_lsq_uses_the_very_step():
    torch.manual_seed(0)
    x, d = torch.randn(500, 7), torch.rand(500, 1) + 0.1
    assert torch.equal(lsq(x, d, 4), torch.round((x * (1 / d)).clamp(-8, 7)) * d)


@given(st.floats(2.0**-20, 1024, width=32))
def test_the_nearest_power_of_two_is_nearest_in_octaves(d):
    found = nearest_power_of_two(torch.tensor(d)).item()
    assert math.frexp(found)[0] == 0.5
    assert abs(math.log2(found / d)) <= 0.5 + 1e-6


def test_lsq_with_power_of_two_steps_passes_gradients_straight_through_their_rounding():
    torch.manual_seed(0)
    x, g = torch.randn(6, 50, dtype=torch.float64), torch.randn(6, 50, dtype=torch.float64)
    d = (torch.rand(6, 1, dtype=torch.float64) + 0.1).requires_grad_()
    result = lsq(x, d, 3, power_of_two=True)
    (found,) = torch.autograd.grad(result, d, g)
    for c, step in enumerate(d.flatten().tolist()):
        p = twin.nearest_power_of_two(step)
        assert result[c].tolist() == [twin.rounded(v, p, -4, 3) for v in x[c].tolist()]
        slope = sum(a * twin.lsq_gradient(v, p, -4, 3) for a, v in zip(g[c].tolist(), x[c].tolist(), strict=True))
        assert found[c].item() == pytest.approx(slope * p / step / math.sqrt(50 * 3))


def test_lsq_starts_at_twice_the_mean_magnitude():
    assert initial_step(torch.tensor(0.3), 3, signed=True).item() == pytest.approx(2 * 0.3 / math.sqrt(3))
    assert initial_step(torch.tensor(0.0), 3, signed=True).item() == pytest.approx(1 / math.sqrt(3))


@pytest.mark.parametrize("bits", [0, 9, 2.0, True])
def test_lsq_refuses_other_widths(bits):
    with pytest.raises(ValueError, match="whole number of 1 to 8 bits"):
        lsq(torch.ones(2), torch.ones(()), bits)
