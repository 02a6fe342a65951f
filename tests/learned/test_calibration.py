"""Where ranges start."""

import numpy as np
import pytest
import torch

from adapt.learned.calibration import best_share, gaussian_range, percentile


def test_weights_get_the_mean_and_three_deviations():
    mean, deviation = torch.tensor([0.5, -1.0]), torch.tensor([0.1, 0.2])
    expected = [max(abs(m + 3 * s), abs(m - 3 * s)) for m, s in ((0.5, 0.1), (-1.0, 0.2))]
    assert gaussian_range(mean, deviation).tolist() == pytest.approx(expected)


def test_percentile_leaves_out_one_in_ten_thousand():
    x = torch.from_numpy(np.random.default_rng(0).permutation(np.arange(-100_000, 0))).float()
    assert percentile(x) == 100_000 * 0.9999
    assert percentile(torch.tensor([torch.nan, torch.inf, -3.0])) == 3
    assert percentile(torch.empty(0)) == 0


def test_best_share_has_the_least_squared_error():
    torch.manual_seed(0)
    values, maximum, top = torch.randn(3, 500), torch.tensor([3.0, 4.0, 1.0]), torch.tensor([1.0, 3.0, 127.0])
    share = best_share(values, maximum, top)

    def error(c, s):
        step = s * maximum[c] / top[c]
        return (((values[c] / step).round().clamp(-top[c], top[c]) * step - values[c]) ** 2).sum()

    for c in range(3):
        assert error(c, share[c]) <= min(error(c, s) for s in np.linspace(0.3, 1.0, 29)) * (1 + 1e-4)
    assert share[0] < share[1]
    assert share[2] == 1
