"""float32 arithmetic in integers, against the processor's."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adapt.export.dyadic import (
    Dyadic,
    add,
    bit_length,
    compare,
    divide,
    from_order,
    multiply,
    multiply_add,
    order,
    shift_to_nearest,
    total,
    whole,
)

NUMBERS = st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**40), max_value=2.0**40)


def lists(count):
    return st.lists(st.tuples(*[NUMBERS] * count), min_size=1, max_size=50).map(
        lambda rows: torch.tensor(rows, dtype=torch.float32).unbind(1)
    )


@pytest.fixture(params=[1, 6, 25])
def numbers(request):
    """Three times 50,000 numbers whose magnitudes differ by so many octaves, up and down."""
    generator = torch.Generator().manual_seed(0)
    octaves = torch.randint(-request.param, request.param, (3, 50_000), generator=generator)
    return (torch.randn(3, 50_000, generator=generator) * torch.exp2(octaves.float())).unbind(0)


def check(a, b, c):
    x, y, z = (Dyadic.of(t) for t in (a, b, c))
    assert torch.equal(x.float(), a)
    assert torch.equal(add(x, y).float(), a + b)
    assert torch.equal(multiply(x, y).float(), a * b)
    assert torch.equal(multiply_add(x, y, z, fused=False).float(), a * b + c)
    assert torch.equal(divide(x, 49).float(), a / 49)
    assert torch.equal(whole(x).float(), torch.round(a))
    assert torch.equal(compare(x, y), (a > b).long() - (a < b).long())
    assert torch.equal(from_order(order(x)).float(), a)
    assert torch.equal((order(x) > order(y)), a > b)


def test_operations_round_as_the_processor_does(numbers):
    check(*numbers)


@given(lists(3))
def test_operations_round_as_the_processor_does_with_numbers_of_any_kind(numbers):
    check(*numbers)


def test_a_fused_product_and_sum_is_rounded_once(numbers):
    a, b, c = numbers
    exact = a.double() * b.double() + c.double()
    found = multiply_add(*(Dyadic.of(t) for t in numbers), fused=True).float()
    # float64 rounds too, so that what it gives can be a tie that was none.
    assert (found != exact.float()).sum() <= 2
    assert torch.equal(found.double().sub(exact).abs(), exact.float().double().sub(exact).abs())


@given(st.integers(-(2**60), 2**60), st.integers(0, 70))
def test_shifts_round_half_to_even(n, shift):
    down, rest = divmod(n, 2**shift)
    expected = down + (2 * rest > 2**shift or (2 * rest == 2**shift and down % 2))
    assert shift_to_nearest(torch.tensor(n), torch.tensor(shift)) == expected
    assert bit_length(torch.tensor(abs(n))) == abs(n).bit_length()


def test_sums_are_exact_and_rounded_once(numbers):
    terms = numbers[0].view(500, 100)
    found = total(Dyadic.of(terms), [1], keepdim=False).float()
    assert torch.equal(found, terms.double().sum(1).float())


def test_common_grids():
    words, exponent = Dyadic.of(torch.tensor([0.75, -3.0, 0.0])).on_grid()
    assert (words.tolist(), exponent) == ([3, -12, 0], -2)
    with pytest.raises(ValueError, match="too far apart"):
        Dyadic.of(torch.tensor([2.0**40, 2.0**-40])).on_grid()
    with pytest.raises(ValueError, match="infinite"):
        Dyadic.of(torch.tensor([torch.inf]))
