"""Programs that torch.compile and torch.export make of a network with learned formats."""

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.functional import cross_entropy

from adapt.learned import attach_lsq
from adapt.rounding import set_backend
from tests.learned.networks import given, gradient_sums, learning, pictures

STEPS = 12


def fixed():
    """A network under LSQ, activations too."""
    return given(activation_bits=4)


def run(make, compiler=None):
    """Losses, formats and weights of a short run, and how many graphs were compiled."""
    torch._dynamo.reset()
    model, optimizer, learner = make()
    counter = CompileCounterWithBackend(compiler)
    forward = model if compiler is None else torch.compile(model, backend=counter, fullgraph=True)
    losses, formats = [], []
    for step in range(STEPS):
        inputs, targets = pictures(step)
        optimizer.zero_grad()
        loss = cross_entropy(forward(inputs), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        formats.append({name: form.step.item() for name, form in learner.formats.items() if name.endswith("input")})
    model.eval()
    with torch.no_grad():
        evaluated = forward(pictures(99)[0])
    return losses, formats, evaluated, counter.frame_count


@pytest.fixture(params=["numba", "torch"])
def back_end(request):
    set_backend(request.param)
    yield
    set_backend(None)


@pytest.mark.covering(2)
@pytest.mark.usefixtures("back_end")
@pytest.mark.parametrize("make", [fixed, learning])
@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_compiled_models_compile_once_and_learn_the_same(compiler, make):
    losses, formats, evaluated, _ = run(make)
    compiled_losses, compiled_formats, compiled_evaluated, frames = run(make, compiler)
    assert frames == 2, "one graph for training, one for evaluation"
    assert len({str(form) for form in formats}) > 2, "no format moved: the test shows nothing"
    assert compiled_losses == losses
    assert compiled_formats == formats
    assert torch.equal(compiled_evaluated, evaluated)


@pytest.mark.long
def test_the_default_compiler_takes_it():
    model, _, learner = learning()
    inputs, targets = pictures(0)
    cross_entropy(torch.compile(model, fullgraph=True)(inputs), targets).backward()
    compiled = gradient_sums(learner)
    cross_entropy(model(inputs), targets).backward()
    for name, sums in gradient_sums(learner).items():
        torch.testing.assert_close(sums - compiled[name], compiled[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("make", [fixed, learning])
def test_an_exported_program_rounds_inputs_too(make):
    model, _, learner = make()
    model.eval()
    inputs = pictures(0)[0]
    with torch.no_grad():
        expected = model(inputs)
        learner.detach()
        assert not torch.equal(model(inputs), expected)
    model, _, _ = make()
    program = torch.export.export(model.eval(), (inputs,), strict=False)  # the default from torch 2.7 on
    assert torch.equal(program.module()(inputs), expected)


def test_a_second_derivative_is_refused_not_forgotten():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer, x = torch.optim.SGD(model.parameters(), lr=0.1), torch.randn(16, 6, requires_grad=True)
    learner = attach_lsq(optimizer, model, [x.detach()], weight_bits=4, activation_bits=4)
    (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        slope.square().sum().backward()
    assert learner.step == 0
