"""The passes over channelwise weights: each element follows its channel's row, in every layout and back end."""

import pytest
import torch
from torch import nn

from adapt.kernels.channels import Layout
from adapt.kernels.learned_steps import SCALINGS
from adapt.kernels.numba_ import channels as channels_numba
from adapt.kernels.torch_ import channels as channels_torch
from adapt.kernels.torch_ import learned_steps as learned_torch
from adapt.layers.channels import channels_of

EWGS = SCALINGS.index("ewgs")


WEIGHTS = {
    "linear": (nn.Linear(40, 7), None),
    "long rows": (nn.Linear(3000, 3), None),
    "transposed in memory": (nn.Linear(40, 7), lambda w: w.t().contiguous().t()),
    "one output": (nn.Linear(40, 1), None),
    "convolution": (nn.Conv2d(4, 6, 3), None),
    "channels last": (nn.Conv2d(4, 6, 3), lambda w: w.contiguous(memory_format=torch.channels_last)),
    "depthwise": (nn.Conv2d(6, 6, 3, groups=6), None),
    "pointwise": (nn.Conv2d(5, 6, 1), None),
    "channels innermost": (nn.Conv2d(4, 6, 3), lambda w: w.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)),
    "up": (nn.ConvTranspose2d(8, 6, 3), None),
    "up in groups": (nn.ConvTranspose2d(8, 6, 3, groups=2), None),
    "up pointwise in groups": (nn.ConvTranspose2d(8, 6, 1, groups=2), None),
    "up in groups, channels last": (
        nn.ConvTranspose2d(8, 6, 3, groups=2),
        lambda w: w.contiguous(memory_format=torch.channels_last),
    ),
    "up in groups, inputs innermost": (
        nn.ConvTranspose2d(8, 6, 3, groups=2),
        lambda w: w.permute(2, 1, 3, 0).contiguous().permute(3, 1, 0, 2),
    ),
    "up in groups, inputs inside channels": (
        nn.ConvTranspose2d(8, 6, 3, groups=2),
        lambda w: w.permute(1, 0, 2, 3).contiguous().permute(1, 0, 2, 3),
    ),
    "embedding": (nn.Embedding(300, 24), None),
    "wide embedding": (nn.Embedding(3, 2500), None),
}


def tensors(seed=0):
    """Weights of every layout, a bias, a number and nothing: tensors, how to view their channels, layouts, rows."""
    generator = torch.Generator().manual_seed(seed)
    weights, channels, layouts, first = [], [], [], 0
    for owner, arrange in WEIGHTS.values():
        weight = torch.randn(owner.weight.shape, generator=generator)
        weights.append(weight if arrange is None else arrange(weight))
        channels.append(channels_of(weights[-1], owner))
    for shape in ((5,), (), (0, 3)):
        weights.append(torch.randn(shape, generator=generator))
        channels.append(channels_of(weights[-1], None))
    for weight, of_weight in zip(weights, channels, strict=True):
        layouts.append(of_weight.layout(weight, first))
        first += of_weight.count
    step = torch.rand(first, generator=generator) / 4 + 0.02
    high = torch.randint(1, 40, (first,), generator=generator).float()
    rows = torch.stack([1 / step, step, -high, high, torch.zeros(first)], dim=1)
    rows[::7] = torch.tensor([0.5, 2.0, -0.5, 0.5, 0.5])
    rows[3::11, 0] = 0
    return weights, channels, layouts, rows


def one_by_one(weights, channels, rows):
    """(tensor, channel's elements as a mask, row) of every channel."""
    first = 0
    for i, (weight, of_weight) in enumerate(zip(weights, channels, strict=True)):
        for c in range(of_weight.count):
            mask = torch.zeros(of_weight.count)
            mask[c] = 1
            elements = of_weight.view(torch.ones(weight.shape)) * mask.view(of_weight.formats)
            yield i, elements.view(weight.shape) > 0, first
            first += 1


def gradients(weights, seed=1):
    """Gradients, one of them missing and one not finite."""
    generator = torch.Generator().manual_seed(seed)
    found = [torch.empty_like(weight).copy_(torch.randn(weight.shape, generator=generator)) for weight in weights]
    found[1].view(-1)[5] = torch.inf
    found[4] = None
    squared = [torch.nan if g is None else g.double().square().sum().item() for g in found]
    return found, torch.tensor(squared, dtype=torch.float64)


def copies(tensors):
    return [None if tensor is None else tensor.clone() for tensor in tensors]


def assert_same(found, expected, **tolerance):
    for one, other in zip(found, expected, strict=True):
        if other is None:
            assert one is None
        elif tolerance:
            torch.testing.assert_close(one, other, **tolerance)
        else:
            assert torch.equal(one, other)


def test_every_element_is_rounded_by_its_channels_row():
    weights, channels, layouts, rows = tensors()
    outputs = [torch.empty_like(weight) for weight in weights]
    channels_torch.quantize_(weights, outputs, rows, layouts)
    for i, mask, row in one_by_one(weights, channels, rows):
        expected = torch.empty(int(mask.sum()))
        learned_torch.forward(weights[i][mask], expected, rows, row)
        assert torch.equal(outputs[i][mask], expected)


@pytest.mark.parametrize("scaling", range(len(SCALINGS)), ids=SCALINGS)
def test_every_gradient_follows_its_channels_row(scaling):
    weights, channels, layouts, rows = tensors()
    found, squared = gradients(weights)
    before, sums = copies(found), torch.ones(len(rows), 4, dtype=torch.float64)
    channels_torch.back_(found, weights, squared, rows, layouts, sums, scaling=scaling, delta=0.2)
    expected = torch.ones(len(rows), 4, dtype=torch.float64)
    for i, mask, row in one_by_one(weights, channels, rows):
        if before[i] is None:
            continue
        if not squared[i].isfinite():
            assert not found[i].any()
            continue
        back = torch.empty(int(mask.sum()))
        learned_torch.backward(before[i][mask], weights[i][mask], back, rows, row, expected, scaling=scaling, delta=0.2)
        # The last bits of torch's artanh depend on the position in a vector.
        torch.testing.assert_close(found[i][mask], back, rtol=1e-6, atol=0)
    torch.testing.assert_close(sums, expected, rtol=1e-9, atol=1e-5)


@pytest.mark.parametrize("in_place", [False, True])
def test_numba_rounds_to_the_same_bits(in_place):
    weights, _, layouts, rows = tensors()
    expected = copies(weights)
    channels_torch.quantize_(weights, expected, rows, layouts)
    sources = copies(weights)
    found = sources if in_place else copies(weights)
    version = found[0]._version
    channels_numba.quantize_(sources, found, rows, layouts)
    assert_same(found, expected)
    assert found[0]._version > version, "autograd must see that the weight changed"


@pytest.mark.parametrize("scaling", range(len(SCALINGS)), ids=SCALINGS)
def test_numba_gradients_agree(scaling):
    weights, _, layouts, rows = tensors()
    results = []
    for kernels in (channels_torch, channels_numba):
        found, squared = gradients(weights)
        sums = torch.ones(len(rows), 4, dtype=torch.float64)
        kernels.back_(found, weights, squared, rows, layouts, sums, scaling=scaling, delta=0.2)
        silent, _ = gradients(weights)
        kernels.back_(silent, weights, squared, rows, layouts, None, scaling=scaling, delta=0.2)
        assert_same(silent, found)
        results.append((found, sums))
    (expected, expected_sums), (found, sums) = results
    assert_same(found, expected, rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(sums, expected_sums, rtol=1e-4, atol=2e-3)


def test_threads_change_nothing():
    weights = [torch.randn(600, 2000), torch.randn(3000, 64), torch.randn(50)]
    layouts = [Layout(0, 2000, 600, 2000 * 600, 1), Layout(600, 1, 64, 64, 1), Layout(664, 50, 1, 50, 1)]
    rows = torch.tensor([[8.0, 0.125, -7.0, 7.0, 0.0]]).repeat(665, 1)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            outputs, back = copies(weights), [torch.sin(weight * 100) for weight in weights]
            sums = torch.zeros(665, 4, dtype=torch.float64)
            channels_numba.quantize_(weights, outputs, rows, layouts)
            channels_numba.back_(back, weights, torch.ones(3).double(), rows, layouts, sums, scaling=EWGS, delta=5e-3)
            results.append((*outputs, *back, sums))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert_same(other, results[0])


def test_no_tensors_at_all():
    rows, sums, squared = torch.zeros(0, 5), torch.zeros(0, 4).double(), torch.zeros(0).double()
    for kernels in (channels_torch, channels_numba):
        kernels.quantize_([], [], rows, [])
        kernels.back_([], [], squared, rows, [], sums, scaling=EWGS, delta=0.1)
