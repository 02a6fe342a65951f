"""The passes of quantisers with a learned step: the back ends agree, in every layout, type and number of threads."""

import pytest
import torch

from adapt.kernels.learned_steps import SCALINGS
from adapt.kernels.numba_ import learned_steps as learned_numba
from adapt.kernels.torch_ import learned_steps as learned_torch

ROWS = torch.tensor(
    [
        [1 / 0.2, 0.2, 0.0, 15.0, 0.0],
        [1 / 0.07, 0.07, -7.0, 7.0, 0.0],
        [1 / 0.07, 0.07, -3.4, 3.4, 0.0],
        [0.5, 2.0, -0.5, 0.5, 0.5],
        [0.0, 1.0, 0.0, 0.0, 0.0],
    ]
)
SHAPES = [(0,), (1,), (1023,), (3, 4096), (5, 7, 11, 13)]


def values(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    if x.numel() > 100:
        x.view(-1)[:4] = torch.tensor([0.0, -0.0, torch.inf, -torch.inf])
    return x


@pytest.mark.covering(1)
@pytest.mark.parametrize("site", range(len(ROWS)))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_agrees_bit_for_bit(shape, site):
    x = values(shape)
    found, expected = torch.full_like(x, 9.0), torch.full_like(x, 9.0)
    learned_numba.forward(x, found, ROWS, site)
    learned_torch.forward(x, expected, ROWS, site)
    assert torch.equal(found, expected)
    in_place = x.clone()
    learned_numba.forward(in_place, in_place, ROWS, site)
    assert torch.equal(in_place, expected)


@pytest.mark.covering(2)
@pytest.mark.parametrize("scaling", range(len(SCALINGS)), ids=SCALINGS)
@pytest.mark.parametrize("site", range(len(ROWS)))
@pytest.mark.parametrize("shape", [(1,), (5000,), (5, 7, 11, 13)], ids=str)
def test_backward_agrees(shape, site, scaling):
    x, g = values(shape), values(shape, seed=1).nan_to_num(posinf=1.0, neginf=-1.0)
    found, expected = torch.empty_like(x), torch.empty_like(x)
    sums, sums_expected = (torch.ones(len(ROWS), 4, dtype=torch.float64) for _ in range(2))
    learned_numba.backward(g, x, found, ROWS, site, sums, scaling=scaling, delta=0.2)
    learned_torch.backward(g, x, expected, ROWS, site, sums_expected, scaling=scaling, delta=0.2)
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(sums, sums_expected, rtol=1e-4, atol=2e-2)
    assert torch.equal(sums[torch.arange(len(ROWS)) != site], torch.ones(len(ROWS) - 1, 4, dtype=torch.float64))
    in_place = g.clone()
    learned_numba.backward(in_place, x, in_place, ROWS, site, sums, scaling=scaling, delta=0.2)
    assert torch.equal(in_place, found)


def test_the_polynomials_are_within_float32_at_the_papers_delta():
    step = 1e-3
    x = torch.linspace(0, 1, 5001) * step
    g = torch.ones_like(x)
    rows = torch.tensor([[1 / step, step, -7.0, 7.0, 0.0]])
    for scaling in range(len(SCALINGS)):
        found, expected = torch.empty_like(x), torch.empty_like(x)
        sums = torch.zeros(1, 4, dtype=torch.float64)
        learned_numba.backward(g, x, found, rows, 0, sums, scaling=scaling, delta=5e-3)
        learned_torch.backward(g, x, expected, rows, 0, sums, scaling=scaling, delta=5e-3)
        assert (found - expected).abs().max() < 6e-7


def test_nan_stays_nan_and_gets_no_gradient():
    x, g = torch.tensor([torch.nan, 0.3]), torch.ones(2)
    for kernels in (learned_numba, learned_torch):
        out = torch.empty(2)
        kernels.forward(x, out, ROWS, 1)
        assert out[0].isnan()
        assert not out[1].isnan()
        kernels.backward(g, x, out, ROWS, 1, torch.zeros(len(ROWS), 4, dtype=torch.float64), scaling=5, delta=0.1)
        assert out[0] == 0


def test_short_types_are_rounded_as_float32():
    x = values((300,)).nan_to_num(posinf=1.0, neginf=-1.0).to(torch.bfloat16)
    found, expected = torch.empty_like(x), torch.empty(300)
    learned_numba.forward(x, found, ROWS, 1)
    learned_torch.forward(x.float(), expected, ROWS, 1)
    assert torch.equal(found, expected.to(torch.bfloat16))
    g = values((300,), seed=1).nan_to_num(posinf=1.0, neginf=-1.0).to(torch.bfloat16)
    gradients, totals = [], []
    for kernels in (learned_numba, learned_torch):
        gradients.append(torch.empty_like(x))
        totals.append(torch.zeros(len(ROWS), 4, dtype=torch.float64))
        kernels.backward(g, x, gradients[-1], ROWS, 1, totals[-1], scaling=0, delta=5e-3)
    assert torch.equal(*gradients)
    torch.testing.assert_close(*totals, rtol=1e-5, atol=1e-4)


def test_threads_change_nothing():
    x, g = values((1_200_000,)), values((1_200_000,), seed=1).nan_to_num(posinf=0.0, neginf=0.0)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            out, back, sums = torch.empty_like(x), torch.empty_like(x), torch.zeros(len(ROWS), 4, dtype=torch.float64)
            learned_numba.forward(x, out, ROWS, 0)
            learned_numba.backward(g, x, back, ROWS, 0, sums, scaling=5, delta=5e-3)
            results.append((out, back, sums))
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
