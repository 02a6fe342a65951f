"""An attach that fails, wherever it fails, changes nothing."""

import gc
import inspect
import math
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import adapt
from adapt import learned
from adapt.engine import registry
from adapt.kernels.numba_ import channels, weights
from tests.training import RESTLESS

PACKAGE = str(Path(adapt.__file__).parent)
POINTS = 25
"""At how many calls, spread over those of an attach, to interrupt it."""


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 4), nn.Dropout(0.5), nn.Linear(4, 3)
    )


def pictures():
    return [torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(1))]


def plain(optimizer, model):
    return adapt.attach(optimizer, model.named_parameters(), RESTLESS)


def everything(optimizer, model):
    options = {"activations": "range", "quantize_errors": True, "execution": "bfloat16", "quantize_biases": True}
    return adapt.attach(optimizer, model, RESTLESS, **options)


def blocks(optimizer, model):
    return adapt.attach(optimizer, model, adapt.MuPPET(steps_per_epoch=2), rounding="nearest")


def widths(optimizer, model):
    return learned.attach(
        optimizer,
        model,
        pictures(),
        weight_budget=learned.Budget(bits=4),
        activation_budget=learned.Budget(bits=4),
        phases=learned.Phases(2, 2, 2),
    )


def steps(optimizer, model):
    return learned.attach_lsq(optimizer, model, pictures(), weight_bits=4, activation_bits=4, steps=10)


def maxima(optimizer, model):
    return learned.attach_aqt(optimizer, model, steps=10)


ATTACHES = [plain, everything, blocks, widths, steps, maxima]


class Interrupted(BaseException):
    """Raised in the middle, as Ctrl-C is."""


class Interruption:
    """Counts the calls within the package, and raises at one of them."""

    def __init__(self, at=None):
        self.at, self.calls = at, 0

    def __call__(self, frame, event, argument):
        # Not in generators: what is raised while one is closed is lost.
        is_generator = frame.f_code.co_flags & inspect.CO_GENERATOR
        if event == "call" and not is_generator and frame.f_code.co_filename.startswith(PACKAGE):
            self.calls += 1
            if self.calls == self.at:
                raise Interrupted

    def __enter__(self):
        sys.setprofile(self)
        return self

    def __exit__(self, *error):
        sys.setprofile(None)


def state_of(optimizer, model):
    """All that attaching could change, in a form that can be compared."""
    return {
        "values": {name: tensor.detach().clone() for name, tensor in model.state_dict().items()},
        "memory": {name: (p.data_ptr(), p._version, p.requires_grad, p.grad) for name, p in model.named_parameters()},
        "parameters": {name: p._post_accumulate_grad_hooks or {} for name, p in model.named_parameters()},
        "modules": {path: shown(module) for path, module in model.named_modules()},
        "optimizer": shown(optimizer),
        "groups": [{**group, "params": [id(p) for p in group["params"]]} for group in optimizer.param_groups],
        "random": torch.get_rng_state(),
        "controller": registry.attached(optimizer),
    }


def shown(owner):
    """The hooks of a module or optimizer, whether it is in training, and what stands in for its methods."""
    return {
        name: dict(value) if isinstance(value, dict) else value
        for name, value in vars(owner).items()
        if "hooks" in name or name in ("training", "forward", "step")
    }


def check_same(before, after):
    assert before.keys() == after.keys()
    for name, value in before.items():
        if isinstance(value, dict):
            check_same(value, after[name])
        elif isinstance(value, torch.Tensor):
            assert torch.equal(value, after[name]), name
        else:
            assert value == after[name], name


def count_calls(attach, model):
    """How many calls an attach makes, once all that happens only once in a process has happened.

    A graph waits for its backward pass, as in the test: parameters that one holds take another way.
    """
    waiting = model.eval()(pictures()[0])
    attach(torch.optim.SGD(model.parameters(), lr=0.1), model).detach("masters")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Interruption() as counted:
        controller = attach(optimizer, model)
    controller.detach()
    del waiting
    return counted.calls


@pytest.fixture
def no_garbage_collection():
    """What finalizers do is not interrupted: their exceptions are lost."""
    gc.collect()
    gc.freeze()  # never unfrozen: see conftest.py
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_garbage_collection")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("attach", ATTACHES)
def test_an_interruption_anywhere_changes_nothing(attach):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    # The graph of a pass that ran before still fits the parameters afterwards.
    loss = model.eval()(pictures()[0]).square().mean()
    expected = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    before = state_of(optimizer, model)
    calls, twin = count_calls(attach, network()), network()
    attach(torch.optim.SGD(twin.parameters(), lr=0.1), twin)
    for at in sorted({round(1 + i * (calls - 1) / POINTS) for i in range(POINTS + 1)}):
        with pytest.raises(Interrupted), Interruption(at):
            attach(optimizer, model)
        check_same(before, state_of(optimizer, model))
    found = torch.autograd.grad(loss, list(model.parameters()))
    assert all(torch.equal(gradient, other) for gradient, other in zip(found, expected, strict=True))
    attach(optimizer, model)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


def attached_at_last(attach, optimizer, model, fail_at):
    """Attach, failing at the first, second, … place until there is none; return the controller and the tries.

    Each failure must leave optimizer and model as they were.
    """
    before, number = state_of(optimizer, model), 1
    while True:
        fail_at(number)
        try:
            return attach(optimizer, model), number
        except Interrupted:
            check_same(before, state_of(optimizer, model))
            number += 1


@pytest.mark.parametrize("attach", ATTACHES)
def test_no_registration_of_a_hook_leaves_a_trace_when_it_fails(attach, monkeypatch):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle, count = torch.utils.hooks.RemovableHandle.__init__, 0
    failing = None

    def registering(self, *arguments, **options):
        nonlocal count
        count += 1
        if count == failing:
            raise Interrupted
        handle(self, *arguments, **options)

    monkeypatch.setattr(torch.utils.hooks.RemovableHandle, "__init__", registering)

    def fail_at(number):
        nonlocal count, failing
        count, failing = 0, number

    controller, tries = attached_at_last(attach, optimizer, model, fail_at)
    assert tries > 4
    assert controller.is_attached


@pytest.fixture
def interrupted_writes(monkeypatch):
    """Return a function that lets one write fail right after it, as Ctrl-C does that arrives while a kernel runs."""
    left = [math.inf]
    count = torch.autograd.graph.increment_version

    def written(tensors):
        count(tensors)
        left[0] -= 1
        if left[0] == 0:
            raise Interrupted

    for module in (weights, channels):
        monkeypatch.setattr(module, "increment_version", written)
    return lambda number: left.__setitem__(0, number)


@pytest.mark.parametrize("attach", ATTACHES)
def test_an_interruption_after_any_write_leaves_the_weights_as_they_were(attach, interrupted_writes):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    controller, tries = attached_at_last(attach, optimizer, model, interrupted_writes)
    interrupted_writes(math.inf)
    assert tries > 1
    assert controller.is_attached


class Refusing(adapt.Fixed):
    """A policy that cannot begin."""

    def start(self, weights):
        raise ValueError("no")


@pytest.mark.parametrize("owner", ["policy", "masters", "calibration"])
def test_parts_that_fail(owner, monkeypatch):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.param_groups[0]["initial_lr"] = 0.5
    before = state_of(optimizer, model)
    if owner == "policy":
        with pytest.raises(ValueError, match="no"):
            adapt.attach(optimizer, model, Refusing(adapt.Precision(8, 4)))
    elif owner == "masters":
        model[3].weight.data = torch.zeros(4, 16)[:, ::2]
        before = state_of(optimizer, model)
        with pytest.raises(ValueError, match=r"3\.weight is a view with gaps"):
            adapt.attach(optimizer, model)
    else:
        with pytest.raises(RuntimeError, match="calibration could not run a batch"):
            learned.attach_lsq(optimizer, model, [torch.ones(2, 2)], weight_bits=4, activation_bits=4, steps=5)
        with pytest.raises(ValueError, match="calibration has no batch"):
            learned.attach_lsq(optimizer, model, weight_bits=4, activation_bits=4, steps=5)
    check_same(before, state_of(optimizer, model))
