"""Batch normalisation of bfloat16 on the CPU, held against torch's in float64."""

import copy

import pytest
import torch
from torch import nn

import adapt
from adapt import Precision
from adapt.execution.normalization import can_normalize, normalize
from adapt.kernels import set_backend
from tests.training import assembled


@pytest.fixture(autouse=True)
def _numba():
    """The kernel is Numba's, whatever back end the environment forces."""
    set_backend("numba")
    yield
    set_backend(None)


KINDS = {
    "1d": (nn.BatchNorm1d, (40, 7), torch.contiguous_format),
    "one channel": (nn.BatchNorm2d, (5, 1, 6, 6), torch.channels_last),
    "2d": (nn.BatchNorm2d, (6, 16, 9, 9), torch.channels_last),
    "no power of two": (nn.BatchNorm2d, (3, 37, 5, 4), torch.channels_last),
    "many channels": (nn.BatchNorm2d, (4, 1500, 2, 2), torch.channels_last),
    "many chunks": (nn.BatchNorm2d, (32, 24, 20, 20), torch.channels_last),
    "3d": (nn.BatchNorm3d, (2, 5, 3, 3, 3), torch.channels_last_3d),
}


def example(kind, mean=3.0):
    """A normalisation, its twin in float64, and what to feed it."""
    torch.manual_seed(0)
    make, shape, layout = KINDS[kind]
    module = make(shape[1], momentum=0.3)
    for parameter in module.parameters():
        nn.init.uniform_(parameter, 0.5, 2.0)
    x = (torch.randn(shape) * 2 + mean).bfloat16().contiguous(memory_format=layout)
    return module, copy.deepcopy(module).double(), x


@pytest.mark.parametrize("mean", [0.0, 60.0])
@pytest.mark.parametrize("kind", KINDS)
def test_a_training_step_is_that_of_float64_rounded_once(kind, mean):
    module, twin, x = example(kind, mean)
    assert can_normalize(module, x)
    # So that the running mean, about which sums are taken, is not that of the batch.
    module.running_mean.fill_(mean / 2)
    twin.running_mean.fill_(mean / 2)
    ours, theirs = x.clone(memory_format=torch.preserve_format).requires_grad_(), x.double().requires_grad_()
    y, exact = normalize(module, ours), twin(theirs)
    assert y.dtype == torch.bfloat16
    assert y.stride() == x.stride()
    scale = 2.0**-8 * (1 + 1e-3)
    # Beside the rounding: float32 sums and products of numbers as large as x/σ.
    slack = 1e-5 * (1 + mean)
    assert ((y.double() - exact).abs() <= scale * exact.abs() + slack).all()
    error = torch.randn_like(exact).bfloat16()
    y.backward(error)
    exact.backward(error.double())
    assert ((ours.grad.double() - theirs.grad).abs() <= scale * theirs.grad.abs() + slack).all()
    for mine, wanted in zip(module.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine.grad.double(), wanted.grad, rtol=1e-4, atol=1e-3 * (1 + mean))
    for mine, wanted in zip(module.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(mine.double(), wanted.double(), rtol=1e-5, atol=1e-5)


def test_errors_of_another_layout_or_expanded():
    gradients = []
    for wide in (False, True):
        module, _, x = example("2d")
        x.requires_grad_()
        error = torch.ones(()).bfloat16().expand(x.shape)
        normalize(module, x).backward(error if wide else error.contiguous())
        gradients.append((x.grad, module.weight.grad, module.bias.grad))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_the_number_of_threads_changes_nothing():
    results, threads = [], torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            torch.manual_seed(0)
            module = nn.BatchNorm2d(8)
            x = torch.randn(40, 8, 64, 64).bfloat16().contiguous(memory_format=torch.channels_last).requires_grad_()
            y = normalize(module, x)
            y.backward(y.detach() * 3 + 1)
            results.append((y, x.grad, module.weight.grad, module.running_var))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_what_it_leaves_to_torch():
    module, _, x = example("2d")
    assert can_normalize(module, x)
    assert not can_normalize(module, x.float())
    assert not can_normalize(module, x.contiguous())
    assert not can_normalize(module, x[:1, :, :1, :1].contiguous(memory_format=torch.channels_last))
    assert not can_normalize(copy.deepcopy(module).eval(), x)
    assert not can_normalize(nn.BatchNorm2d(16, affine=False), x)
    assert not can_normalize(nn.BatchNorm2d(16, track_running_stats=False), x)
    assert not can_normalize(nn.BatchNorm2d(16, momentum=None), x)
    assert not can_normalize(nn.BatchNorm2d(8), x)
    set_backend("torch")
    assert not can_normalize(module, x)


@pytest.mark.parametrize("training", [True, False])
def test_layers_and_normalisation_together(training):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).to(memory_format=torch.channels_last)
    model.train(training)
    plain = copy.deepcopy(model)
    policy = adapt.Fixed(Precision(8, 6))
    _, _, controller = assembled(model, policy, rounding="nearest", execution="bfloat16")
    assembled(plain, policy, rounding="nearest")
    x = torch.randn(4, 3, 8, 8).to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(x), plain(x), rtol=0.02, atol=0.03)
    for mine, wanted in zip(model.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=0.01, atol=0.01)
    copied = copy.deepcopy(model)
    y = x.new_ones(2, 8, 2, 2).bfloat16().contiguous(memory_format=torch.channels_last)
    assert torch.equal(copied[1](y), nn.BatchNorm2d.forward(copy.deepcopy(copied[1]), y))
    controller.detach()
    assert "forward" not in model[1].__dict__
