"""Activation checkpointing repeats passes with their own noise: gradients are those of a run without it."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import adapt
from adapt import Precision
from tests.training import assembled

MODES = [False, True]


class Chain(nn.Module):
    """Passes its input through one layer twice, and through another."""

    def __init__(self):
        super().__init__()
        self.shared, self.other = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        return torch.tanh(self.shared(torch.tanh(self.other(torch.tanh(self.shared(x))))))


class Nested(Chain):
    """The chain twice, the first time forgotten within what is forgotten around it."""

    def __init__(self, reentrant):
        super().__init__()
        self.reentrant = reentrant

    def forward(self, x):
        once = super().forward
        inner = once(x) if self.reentrant is None else checkpoint(once, x, use_reentrant=self.reentrant)
        return once(inner)


def gradients(make, reentrant, *, passes=1, again=False, policy=None, **options):
    """The gradients of inputs and parameters in three steps, each with several passes before one backward pass."""
    torch.manual_seed(0)
    options = {"activations": "layer", "quantize_errors": True} | options
    model, optimizer, _ = assembled(make(reentrant), policy or adapt.Fixed(Precision(8, 4)), **options)
    found = []
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        inputs = [torch.rand(16, 6, generator=generator).requires_grad_() for _ in range(passes)]
        optimizer.zero_grad()
        outputs = [model(x) if reentrant is None else checkpoint(model, x, use_reentrant=reentrant) for x in inputs]
        loss = sum(output.square().sum() for output in outputs)
        if again:
            loss.backward(retain_graph=True)
        loss.backward()
        found += [x.grad for x in inputs] + [p.grad.clone() for p in model.parameters()]
        optimizer.step()
    return found


CASES = {
    "one pass": (lambda _: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), {}),
    "shared layer": (lambda _: Chain(), {}),
    "two forwards": (lambda _: Chain(), {"passes": 2}),
    "nested": (Nested, {}),
    "nested and two forwards": (Nested, {"passes": 2}),
    "by range": (Nested, {"passes": 2, "activations": "range"}),
    "backward twice": (lambda _: Chain(), {"passes": 2, "again": True}),
}


@pytest.mark.parametrize("reentrant", MODES)
@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_without_checkpointing(case, reentrant):
    make, options = CASES[case]
    for plain, ours in zip(gradients(make, None, **options), gradients(make, reentrant, **options), strict=True):
        # Only the order in which a shared weight's gradients are added differs.
        torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-6)


def test_noise_matters_here():
    first, other = (gradients(CASES["two forwards"][0], None, passes=2, seed=seed) for seed in (0, 1))
    assert (first[0] - other[0]).abs().max() > 1e-3, "the noise changes nothing: these tests show nothing"


@pytest.mark.parametrize("reentrant", MODES)
def test_an_ordinary_pass_between_does_not_disturb_a_repeated_one(reentrant):
    found = []
    for kind in (None, reentrant):
        torch.manual_seed(0)
        model, _, _ = assembled(Chain(), adapt.Fixed(Precision(8, 4)), activations="layer")
        x = torch.rand(16, 6).requires_grad_()
        y = model(x) if kind is None else checkpoint(model, x, use_reentrant=kind)
        (y + model(x.detach())).square().sum().backward()
        found.append(x.grad)
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-6)


class Forgetful(torch.autograd.Function):
    """Checkpointing of another library: keeps the input alone and repeats the pass in backward."""

    @staticmethod
    def forward(ctx, x, function):
        ctx.save_for_backward(x)
        ctx.function = function
        with torch.no_grad():
            return function(x)

    @staticmethod
    def backward(ctx, error):
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            y = ctx.function(x)
        y.backward(error)
        return x.grad, None


def test_checkpointing_of_others_is_exact_for_one_pass_and_warns_of_several(recwarn):
    found = []
    for apply in (lambda x, model: model(x), Forgetful.apply):
        torch.manual_seed(0)
        model, _, _ = assembled(nn.Linear(6, 6), adapt.Fixed(Precision(8, 4)), activations="layer")
        x = torch.rand(16, 6).requires_grad_()
        apply(x, model).square().sum().backward()
        found.append(x.grad)
    assert torch.equal(*found)
    assert not [warning for warning in recwarn if "checkpointing" in str(warning.message)]
    y = Forgetful.apply(x, model) + Forgetful.apply(x, model)
    with pytest.warns(UserWarning, match="activation checkpointing repeats one of several passes"):
        y.sum().backward()
