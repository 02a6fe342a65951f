"""Where ranges start."""

import numpy as np
import pytest
import torch

from adapt.learned.activations import SAMPLE, SiteStatistics, percentile
from adapt.learned.calibration import best_range, best_step, gaussian_range


def test_weights_get_the_mean_and_three_deviations():
    mean, deviation = torch.tensor([0.5, -1.0]), torch.tensor([0.1, 0.2])
    expected = [max(abs(m + 3 * s), abs(m - 3 * s)) for m, s in ((0.5, 0.1), (-1.0, 0.2))]
    assert gaussian_range(mean, deviation).tolist() == pytest.approx(expected)


def test_percentile_leaves_out_one_in_ten_thousand():
    x = torch.from_numpy(np.random.default_rng(0).permutation(np.arange(-100_000, 0))).float()
    assert percentile(x) == 100_000 * 0.9999
    assert percentile(torch.tensor([torch.nan, torch.inf, -3.0])) == 3
    assert percentile(torch.empty(0)) == 0


def error(values, maximum, top):
    """Σ(Q(x) − x)² of a channel in a word that ends at ±top steps; of ±q₊ where top is 0."""
    if not top:
        return (maximum * values.sign() - values).square().sum().item()
    step = maximum / top
    return ((values / step).round().clamp(-top, top) * step - values).square().sum().item()


def step_error(x, d, low, high):
    """Σ(d·round(clip(x/d, low, high)) − x)², element by element."""
    return sum((d * round(min(max(v / d, low), high)) - v) ** 2 for v in x.tolist())


@pytest.mark.parametrize(("low", "high"), [(-1, 1), (-2, 1), (0, 1), (0, 3), (-8, 7), (-7, 7), (0, 15), (-127, 127)])
def test_the_best_step_has_the_least_squared_error_of_a_fine_grid(low, high):
    torch.manual_seed(0)
    values = torch.randn(3, 300).pow(3) if low else torch.randn(3, 300).pow(3).abs()
    found = best_step(values, torch.full((3,), float(low)), torch.full((3,), float(high)))
    for x, d in zip(values, found.tolist(), strict=True):
        least = min(step_error(x, float(x.abs().max()) / high * 2 ** (-k / 32), low, high) for k in range(7 * 32))
        assert step_error(x, d, low, high) <= 1.1 * least


def test_a_largest_step_bounds_the_search():
    values, one = torch.linspace(-4, 4, 101)[None], torch.ones(1)
    assert best_step(values, -one, one).item() > 1.5
    assert best_step(values, -one, one, torch.tensor([0.5])).item() == 0.5


def test_the_best_range_has_the_least_squared_error_up_to_a_maximum():
    torch.manual_seed(0)
    values, maximum, top = torch.randn(3, 500), torch.tensor([3.0, 3.2, 1.0]), torch.tensor([1.0, 3.0, 127.0])
    found = best_range(values, maximum, top)
    for c in range(3):
        least = min(error(values[c], m, top[c]) for m in maximum[c] * torch.linspace(0.2, 1.0, 81))
        assert error(values[c], found[c], top[c]) <= 1.02 * least
    assert found[0] < found[1]
    assert found[2] == 1


def test_calibration_keeps_evenly_spaced_values_without_zeros_and_nan():
    site = SiteStatistics()
    site.observe(torch.tensor([[0.0, 2.0, torch.nan], [torch.inf, -1.0, 0.0]]))
    assert torch.cat(site.values).tolist() == [2, -1]
    assert site.negative
    site.observe(torch.arange(1.0, 4 * SAMPLE + 4))
    assert len(site.values[1]) <= SAMPLE
    assert site.values[1][:3].tolist() == [1, 6, 11]


def test_the_best_range_of_one_signed_bit_is_the_mean_magnitude():
    torch.manual_seed(0)
    values = torch.randn(2, 400) * torch.tensor([[1.0], [0.01]])
    found = best_range(values, torch.ones(2), torch.zeros(2))
    assert found.tolist() == pytest.approx(values.abs().mean(1).tolist())
    for c in range(2):
        assert all(error(values[c], found[c], 0) < error(values[c], found[c] * f, 0) for f in (0.9, 1.1))


@pytest.mark.parametrize("reach", [50.0, torch.inf])
def test_a_range_far_beyond_the_values_does_not_matter(reach):
    torch.manual_seed(0)
    values, top = torch.randn(1, 300), torch.tensor([3.0])
    found = best_range(values, torch.tensor([reach]), top)
    assert found == best_range(values, values.abs().amax(1), top)
    assert error(values[0], found[0], 3.0) < error(values[0], torch.tensor(0.3 * 50), 3.0) / 10


def test_a_channel_of_zeros_has_a_range():
    assert (best_range(torch.zeros(1, 4), torch.ones(1), torch.ones(1)) > 0).all()
