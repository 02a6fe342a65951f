"""A gradient that nothing else can see is recognised, and one that something keeps never is."""

import pytest
import torch
from torch import nn

import adapt
from adapt.activations.ownership import is_unshared, unshared_counts
from tests.training import copies

unshared_counts()


class Noting(torch.autograd.Function):
    """Notes whether its gradient is unshared."""

    @staticmethod
    def forward(ctx, x, noted):
        ctx.noted = noted
        return x.clone()

    @staticmethod
    def backward(ctx, *gradients):
        (gradient,) = gradients
        ctx.noted.append(is_unshared(gradient))
        return gradient, None


def noted_in(use, **options):
    """What `is_unshared` says in the backward pass of `use`, called with a tensor and a list that keeps things."""
    noted, kept = [], []
    x = torch.randn(4, 3, requires_grad=True)
    gradient = torch.ones(4, 3)
    result = use(Noting.apply(x, noted), kept)
    result.backward(gradient if result.dim() else None, **options)
    return noted


def keeping_in(register):
    def use(y, kept):
        register(y, kept)
        return (y * 2).pow(2)

    return use


def through_a_module(y, kept):
    module = nn.Identity()
    module.register_full_backward_hook(lambda module, inputs, outputs: kept.append(inputs[0]))
    return (module(y) * 2).pow(2)


KEPT = {
    "hook": keeping_in(lambda y, kept: y.register_hook(kept.append)),
    "hook before the node": keeping_in(lambda y, kept: y.grad_fn.register_prehook(lambda g: kept.append(g[0]))),
    "hook after the node": keeping_in(lambda y, kept: y.grad_fn.register_hook(lambda i, o: kept.append(o[0]))),
    "module hook": through_a_module,
    "caller": lambda y, kept: y,
    "expanded": lambda y, kept: y.sum(),
    "view": lambda y, kept: (y.view(-1) * 2).view(4, 3),
}


@pytest.mark.parametrize("name", KEPT)
def test_a_gradient_that_something_keeps_is_shared(name):
    assert noted_in(KEPT[name]) == [False]


def test_a_gradient_made_for_its_reader_alone_is_unshared():
    assert noted_in(lambda y, kept: (y * 2).pow(2)) == [True]
    assert noted_in(keeping_in(lambda y, kept: y.register_hook(lambda g: None))) == [True]


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph:UserWarning")
def test_no_gradient_of_a_graph_that_goes_on_is_unshared():
    assert noted_in(lambda y, kept: (y * 2).pow(2), create_graph=True) == [False]


def test_branches_that_share_a_gradient_never_both_have_it():
    noted = []
    x = torch.randn(3, requires_grad=True)
    ((Noting.apply(x, noted) + Noting.apply(x, noted)) * 2).sum().backward()
    assert noted in ([False, True], [False, False])


def test_errors_are_rounded_the_same_in_place_and_elsewhere_and_kept_ones_stay():
    results = []
    for kept in (None, []):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3), nn.Tanh())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        controller = adapt.attach(optimizer, model, adapt.AdaPT(), activations="range", quantize_errors=True)
        for _ in range(3):
            optimizer.zero_grad()
            y = model[:3](torch.randn(5, 6))
            if kept is not None:
                y.register_hook(lambda g, kept=kept: kept.append((g, g.clone())))
            loss = model[3](y).pow(2).sum()
            loss.backward()
            controller.observe(loss)
            optimizer.step()
        results.append(copies(controller.masters))
        assert all(torch.equal(gradient, copy) for gradient, copy in kept or ())
    assert all(torch.equal(left, right) for left, right in zip(*map(dict.values, results), strict=True))
