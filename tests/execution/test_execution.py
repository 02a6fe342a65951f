"""Layers that really compute in a short type: what is exact, what is rounded once, and what stays float32."""

import copy
import pickle
from dataclasses import dataclass
from threading import Thread

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import adapt
from adapt import Precision
from adapt.execution import EXECUTIONS, fits_into
from adapt.switching.policy import State
from tests.training import Conv1D, assembled, copies, is_on_grid, net, train

SHORT, LONG = adapt.Fixed(Precision(8, 4)), adapt.Fixed(Precision(12, 8))

LAYERS = {
    "linear": (lambda: nn.Linear(6, 5), (4, 6)),
    "linear of sequences": (lambda: nn.Linear(6, 5), (4, 3, 6)),
    "linear of one": (lambda: nn.Linear(6, 5, bias=False), (6,)),
    "transformers' Conv1D": (lambda: Conv1D(5, 6), (4, 3, 6)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, dilation=2), (2, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 7, 7)),
    "conv2d of one picture": (lambda: nn.Conv2d(4, 6, 3), (4, 7, 7)),
    "same": (lambda: nn.Conv2d(4, 6, (3, 2), padding="same"), (2, 4, 7, 7)),
    "circular": (lambda: nn.Conv2d(4, 6, 3, padding=(1, 2), padding_mode="circular", bias=False), (2, 4, 7, 7)),
    "grouped": (lambda: nn.Conv2d(4, 8, 3, groups=4), (2, 4, 7, 7)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2), (2, 2, 4, 4, 4)),
    "transposed1d": (lambda: nn.ConvTranspose1d(4, 2, 3), (2, 4, 5)),
    "transposed2d": (lambda: nn.ConvTranspose2d(4, 2, 3, stride=2, output_padding=1), (2, 4, 5, 5)),
    "transposed3d": (lambda: nn.ConvTranspose3d(2, 2, 2), (1, 2, 3, 3, 3)),
    "small pictures": (lambda: nn.Conv2d(4, 256, 3, padding=1), (2, 4, 4, 4)),
    "small pictures, sparsely": (
        lambda: nn.Conv2d(4, 256, (3, 2), stride=(2, 3), padding=(1, 2), dilation=(2, 1)),
        (2, 4, 6, 5),
    ),
    "small pictures in groups": (lambda: nn.Conv2d(4, 256, 2, groups=2), (2, 4, 5, 6)),
    "small pictures transposed": (lambda: nn.ConvTranspose2d(256, 4, 3, stride=2), (2, 256, 3, 3)),
}


def eighths(shape, seed=0):
    """Multiples of 1/8 up to 2 in magnitude: exact in either short type, and their sums in float32."""
    return torch.randint(-16, 17, shape, generator=torch.Generator().manual_seed(seed)) / 8


def exact_layer(make):
    """A layer whose parameters are multiples of 1/8, and its twin in float64."""
    layer = make()
    with torch.no_grad():
        for seed, parameter in enumerate(layer.parameters()):
            parameter.copy_(eighths(parameter.shape, seed))
    return layer, copy.deepcopy(layer).double()


@pytest.mark.covering(2)
@pytest.mark.filterwarnings("ignore:this processor has no float16 products")
@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("backward", [True, False])
@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("layer", LAYERS)
def test_exact_operands_give_the_exact_sums_rounded_once(layer, last, execution, backward):
    make, shape = LAYERS[layer]
    module, twin = exact_layer(make)
    x, dtype = eighths(shape, seed=7), EXECUTIONS[execution]
    if last:
        if x.dim() != 4:
            pytest.skip("only pictures have that layout")
        module, x = (t.to(memory_format=torch.channels_last) for t in (module, x))
    _, _, controller = assembled(module, SHORT, rounding="nearest", execution=execution, execution_backward=backward)
    assert torch.equal(module.weight, controller.masters["weight"]), "a weight is off the grid: the test shows nothing"
    ours, theirs = x.clone().requires_grad_(), x.double().requires_grad_()
    y, exact = module(ours), twin(theirs)
    error = eighths(y.shape, seed=3)
    y.backward(error)
    exact.backward(error.double())
    assert y.dtype == torch.float32
    assert torch.equal(y, exact.to(dtype).float())
    wanted = (theirs.grad, *(p.grad for p in twin.parameters()))
    for actual, gradient in zip((ours.grad, *(p.grad for p in module.parameters())), wanted, strict=True):
        assert actual.dtype == torch.float32
        if actual is ours.grad and layer == "circular" and backward:
            # The padding's backward adds up gradients that were rounded each.
            torch.testing.assert_close(actual, gradient.float(), rtol=2.0**-8, atol=0.2)
            continue
        assert torch.equal(actual, gradient.to(dtype if backward else torch.float32).float())


@pytest.mark.parametrize("backward", [True, False])
@pytest.mark.parametrize("shape", [(40, 60), (3, 40, 60), (2, 3, 40, 60)])
def test_inputs_with_gaps_in_memory_are_rounded_once_too(shape, backward):
    module, twin = exact_layer(lambda: nn.Linear(60, 50))
    options = {"execution": "bfloat16", "execution_backward": backward}
    assembled(module, SHORT, rounding="nearest", **options)
    x = eighths(shape, seed=7).transpose(0, -2).contiguous().transpose(0, -2)
    assert torch.equal(module(x), twin(x.double()).bfloat16().float())


@pytest.mark.parametrize("backward", [True, False])
def test_sums_that_are_not_exact_stay_within_the_stated_bounds(backward):
    torch.manual_seed(0)
    options = {"execution": "bfloat16", "execution_backward": backward}
    module, _, _ = assembled(nn.Conv2d(32, 16, 3, padding=1), SHORT, **options)
    x = torch.randn(4, 32, 9, 9)
    operand = x.bfloat16().double().requires_grad_()
    weight = adapt.quantize(module.weight, Precision(8, 4)).double().requires_grad_()
    assert torch.equal(weight.float(), module.weight)
    exact = F.conv2d(operand, weight, module.bias.bfloat16().double(), padding=1)
    y = module(x)
    # 288 float32 additions of terms below the sum of magnitudes, then one rounding to 8 bits of significand.
    magnitudes = F.conv2d(operand.abs(), weight.abs(), module.bias.abs().double(), padding=1)
    assert ((y - exact).abs() <= 2.0**-8 * exact.abs() + 288 * 2.0**-24 * magnitudes).all()
    error = torch.randn_like(exact).bfloat16()
    y.backward(error.float())
    exact.backward(error.double())
    bound = 2.0**-8 if backward else 0.0
    terms = F.conv2d(operand.abs().transpose(0, 1), error.double().abs().transpose(0, 1), padding=1).transpose(0, 1)
    assert ((module.weight.grad - weight.grad).abs() <= bound * weight.grad.abs() + 324 * 2.0**-24 * terms).all()


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_every_value_of_a_format_that_fits_is_one_of_the_type(execution):
    dtype, taken = EXECUTIONS[execution], 0
    for word_length in range(2, 14):
        for fraction_length in (-126, -40, -5, 0, 7, 15, 24, 25, 40, 126):
            precision = Precision(word_length, fraction_length)
            steps = torch.arange(-(2 ** (word_length - 1)), 2 ** (word_length - 1), dtype=torch.float64)
            grid = steps * precision.step
            # What float32 does not hold is cut off there too.
            grid = grid[grid.float().double() == grid]
            if fits_into(precision, dtype):
                taken += 1
                assert torch.equal(grid.to(dtype).double(), grid), precision
    assert taken > 20
    assert fits_into(Precision(8, 4), torch.bfloat16)
    assert not fits_into(Precision(9, 4), torch.bfloat16)
    assert fits_into(Precision(11, 8), torch.float16)
    assert not fits_into(Precision(12, 8), torch.float16)


def test_layers_that_do_not_fit_are_computed_as_if_nothing_were_set():
    results = []
    for execution in (None, "bfloat16"):
        model, optimizer, controller = assembled(net(), LONG, execution=execution)
        train(model, optimizer, 3, controller=controller)
        results.append((model(torch.ones(2, 6)), *(p.grad for p in model.parameters())))
    for plain, ours in zip(*results, strict=True):
        assert torch.equal(plain, ours)


def test_a_platform_without_such_products_is_no_faster_and_says_so(monkeypatch):
    results = []
    for native in (True, False):
        module, _ = exact_layer(lambda: nn.Conv2d(4, 6, 3))
        if not native:
            monkeypatch.setattr("adapt.execution.products.is_native", lambda dtype, device: dtype == torch.float32)
            monkeypatch.setattr("adapt.execution.execution.is_native", lambda dtype, device: False)
            with pytest.warns(UserWarning, match="no bfloat16 products"):
                assembled(module, SHORT, rounding="nearest", execution="bfloat16")
        else:
            assembled(module, SHORT, rounding="nearest", execution="bfloat16")
        x = eighths((2, 4, 7, 7)).requires_grad_()
        y = module(x)
        y.backward(eighths(y.shape, seed=1))
        results.append((y, x.grad, module.weight.grad, module.bias.grad))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


class Types(list):
    """The element types that come out of the layers inside a model."""

    def __init__(self, model):
        super().__init__()
        for module in model:
            module.register_forward_hook(lambda _, args, output: self.append(output.dtype))


def test_activations_flow_in_the_short_type_and_the_outermost_module_returns_float32():
    model, _, _ = assembled(net(), SHORT, execution="bfloat16")
    types = Types(model)
    assert model(torch.ones(2, 6)).dtype == torch.float32
    assert types == [torch.bfloat16] * 3
    outer = nn.ModuleDict({"body": net()})
    # Without its optimizer the controller would go at any time, even within a pass.
    _held = assembled(outer, SHORT, execution="bfloat16")
    assert outer["body"](torch.ones(2, 6)).dtype == torch.float32
    assert outer["body"][0](torch.ones(2, 6)).dtype == torch.float32


def test_modules_of_other_kinds_are_given_float32():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.frozen = nn.Conv1d(3, 8, 1), nn.LayerNorm(8), nn.Linear(8, 8)
            self.frozen.requires_grad_(False)
            self.attention, self.gru = nn.MultiheadAttention(8, 2, batch_first=True), nn.GRU(8, 4, batch_first=True)
            self.embedding, self.slope, self.head = nn.Embedding(5, 8), nn.PReLU(), nn.Linear(4, 2)

        def forward(self, x, index):
            y = self.conv(x).transpose(1, 2) + self.embedding(index)
            y = self.slope(self.frozen(self.norm(y)))
            return self.head(self.gru(self.attention(y, y, y, need_weights=False)[0])[0])

    torch.manual_seed(0)
    model = Mixed()
    with pytest.warns(UserWarning, match="attention, gru run in float32, because 'bfloat16' execution covers only"):
        _, optimizer, _ = assembled(model, SHORT, execution="bfloat16")
    for mode in (True, False):
        model.train(mode)
        y = model(torch.randn(2, 3, 5), torch.randint(5, (2, 5)))
        assert y.dtype == torch.float32
        y.sum().backward()
    optimizer.step()


def test_an_exception_leaves_no_module_open():
    model, _, _ = assembled(net(), SHORT, execution="bfloat16")
    with pytest.raises(RuntimeError):
        model(torch.ones(2, 5))
    assert model(torch.ones(2, 6)).dtype == torch.float32


def test_an_interrupt_leaves_no_module_open():
    """torch tells nobody of Ctrl-C, which is no Exception."""
    model, _, _ = assembled(nn.Sequential(net(), nn.Linear(3, 2)), SHORT, execution="bfloat16")

    def interrupt(*_):
        raise KeyboardInterrupt

    handle = model[0][1].register_forward_hook(interrupt)
    for part in (model, model[0]):
        with pytest.raises(KeyboardInterrupt):
            part(torch.ones(2, 6))
    handle.remove()
    assert model[0](torch.ones(2, 6)).dtype == model(torch.ones(2, 6)).dtype == torch.float32


def test_threads_that_run_a_model_at_once_do_not_disturb_each_other():
    model, _, _ = assembled(nn.Sequential(net(), nn.Linear(3, 2)), SHORT, execution="bfloat16")
    model.eval()
    outputs, nested = [], []

    def run_beside(*_):
        if not nested:
            nested.append(True)
            other = Thread(target=lambda: outputs.append(model(torch.ones(2, 6))))
            other.start()
            other.join()

    model[0][1].register_forward_hook(run_beside)
    outputs.append(model(torch.ones(2, 6)))
    assert [output.dtype for output in outputs] == [torch.float32, torch.float32]
    assert torch.equal(*outputs)


class Recomputing(nn.Module):
    """Forgets what is between two layers, and computes it again in backward."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.second(checkpoint(lambda t: torch.tanh(self.first(t)).square(), x, use_reentrant=False))


def test_what_a_checkpoint_computes_again_has_the_type_that_it_had():
    model, _, _ = assembled(Recomputing(), SHORT, rounding="nearest", execution="bfloat16")
    x = torch.randn(4, 6)
    model(x).square().sum().backward()
    found = model.first.weight.grad.clone()
    model.zero_grad()
    y = model.second(torch.tanh(model.first.forward(x.bfloat16()).bfloat16()).square())
    y.square().sum().backward()
    assert (found - model.first.weight.grad).norm() < 0.05 * found.norm()


@dataclass(frozen=True)
class Alternating(adapt.Fixed):
    """8 bits and 12 bits in turn."""

    def start(self, weights):
        return self.advance(super().start(weights), None)

    def patience(self, state):
        return 0

    def advance(self, state, observation):
        even = state.gradients % 2 == 0
        return State(tuple(Precision(8, 4) if e else Precision(12, 8) for e in even), state.gradients + 1)


def test_the_choice_follows_the_precision_from_step_to_step():
    model, optimizer, controller = assembled(net(), Alternating(Precision(8, 4)), execution="bfloat16")
    types = Types(model)
    for step in range(4):
        types.clear()
        word_length = controller.precisions["0.weight"].word_length
        train(model, optimizer, 1, first=step, controller=controller)
        assert types == [torch.bfloat16 if word_length == 8 else torch.float32] * 3
        assert word_length == (8 if step % 2 == 0 else 12)


def test_a_format_decides_from_the_forward_pass_that_uses_it_on():
    model, optimizer, controller = assembled(net(), Alternating(Precision(8, 4)), execution="bfloat16")
    types = Types(model)
    train(model, optimizer, 1, controller=controller)
    types.clear()
    loss = model(torch.ones(2, 6)).sum()
    assert len(controller.trace) == 1  # which lets the policy see all that waits
    model(torch.ones(2, 6))
    loss.backward()
    assert set(types) == {torch.float32}
    assert is_on_grid(model[0].weight, controller.precisions["0.weight"])


def test_state_dict_copies_and_detached_models_know_nothing_of_it():
    plain, _, _ = assembled(net(), SHORT, rounding="nearest")
    model, optimizer, controller = assembled(net(), SHORT, rounding="nearest", execution="bfloat16")
    model(torch.ones(2, 6)).sum().backward()
    for mine, theirs in zip(model.state_dict().items(), plain.state_dict().items(), strict=True):
        assert mine[0] == theirs[0]
        assert torch.equal(mine[1], theirs[1])
    assert set(optimizer.state_dict()["adapt"]) >= {"masters", "state"}
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        simple = net()
        simple.load_state_dict(other.state_dict())
        other.load_state_dict(simple.state_dict())
        assert torch.equal(other(torch.ones(2, 6)), simple(torch.ones(2, 6)))
        other[0].weight.data.zero_()
        assert torch.equal(other[0](torch.ones(2, 6)), other[0].bias.expand(2, 8))
    controller.detach()
    assert not any("forward" in module.__dict__ for module in model.modules())
    simple.load_state_dict(model.state_dict())
    assert torch.equal(model(torch.ones(2, 6)), simple(torch.ones(2, 6)))


def test_masters_run_in_float32_and_evaluation_in_the_short_type():
    model, _, controller = assembled(net(), SHORT, execution="bfloat16")
    types, inputs = Types(model), torch.rand(2, 6)
    with controller.master_weights():
        masters = controller.masters
        hidden = torch.tanh(F.linear(inputs, masters["0.weight"], model[0].bias))
        assert torch.equal(model(inputs), F.linear(hidden, masters["2.weight"], model[2].bias))
    assert set(types) == {torch.float32}
    types.clear()
    model.eval()
    model(inputs)
    with controller.evaluation_weights():
        model(inputs)
    assert set(types) == {torch.bfloat16}


def test_under_autocast_layers_that_do_not_fit_stay_in_float32():
    model, _, _ = assembled(nn.Linear(64, 64), LONG, execution="bfloat16")
    x = torch.randn(8, 64)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
    assert torch.equal(y, F.linear(x, model.weight, model.bias))


@pytest.mark.parametrize("backward", [True, False])
@pytest.mark.parametrize("make", [lambda: nn.Linear(6, 5), lambda: nn.Conv1d(6, 5, 1)])
def test_autocast_to_another_type_changes_nothing(make, backward):
    module, twin = exact_layer(make)
    options = {"execution": "bfloat16", "execution_backward": backward}
    assembled(module, SHORT, rounding="nearest", **options)
    x, outputs = eighths((6, 6), seed=7).repeat(20, 1, 1), []
    for enabled in (True, False):
        with torch.autocast("cpu", torch.float16, enabled=enabled):
            outputs.append(module(x))
    assert torch.equal(*outputs)
    assert torch.equal(outputs[0], twin(x.double()).bfloat16().float())


def test_rounded_activations_are_operands_as_they_are():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 4, 3))
    options = {"activations": "range", "quantize_errors": True}
    _, optimizer, controller = assembled(model, SHORT, execution="bfloat16", **options)
    flows = []
    for name in ("0", "3"):
        hook = lambda _, args, output, name=name: flows.append((f"{name}.weight", args[0], output))  # noqa: E731
        model[int(name)].register_forward_hook(hook)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, 3, 8, 8)).square().mean().backward()
        formats = controller.activation_precisions
        for name, x, y in flows:
            assert is_on_grid(x.float(), formats[f"{name}.input"])
            assert is_on_grid(y.float(), formats[f"{name}.output"])
            assert y.dtype == torch.bfloat16
        flows.clear()
        optimizer.step()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def blobs(step):
    """Three classes of pictures, told apart by where they are bright."""
    generator = torch.Generator().manual_seed(step)
    target = torch.randint(3, (32,), generator=generator)
    x = torch.randn(32, 1, 6, 6, generator=generator) * 0.7
    for i, c in enumerate(target.tolist()):
        x[i, 0, 2 * c : 2 * c + 2] += 1
    return x, target


def learn(execution, **options):
    """The losses of a short training of a convolutional network."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8),
        nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(72, 3),
    ).to(memory_format=torch.channels_last)  # fmt: skip
    policy = adapt.Fixed(Precision(8, 6))
    _, optimizer, controller = assembled(model, policy, lr=0.1, execution=execution, **options)
    losses = []
    for step in range(60):
        x, target = blobs(step)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x.to(memory_format=torch.channels_last)), target)
        loss.backward()
        controller.observe(loss)
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses)


@pytest.mark.parametrize("backward", [True, False])
def test_training_goes_as_in_the_simulation(backward):
    simulated, ours = learn(None), learn("bfloat16", execution_backward=backward)
    assert not torch.equal(simulated, ours)
    assert simulated[-10:].mean() < 0.25 * simulated[0]
    assert (simulated - ours).abs().max() < 0.15
    assert abs(simulated[-10:].mean() - ours[-10:].mean()) < 0.03


def run(compiler=None, policy=None):
    """Losses of a short run and how many graphs were compiled."""
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4))
    counter = CompileCounterWithBackend(compiler)
    forward = model if compiler is None else torch.compile(model, backend=counter)
    _, optimizer, controller = assembled(
        model, policy or Alternating(Precision(8, 4)), rounding="nearest", execution="bfloat16"
    )
    losses = []
    for step in range(4):
        optimizer.zero_grad()
        loss = forward(torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(step))).square().mean()
        loss.backward()
        controller.observe(loss)
        optimizer.step()
        losses.append(loss.item())
    return losses, counter.frame_count


@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_compiled_models_compile_once_and_round_each_layers_output(compiler):
    losses, frames = run(compiler)
    assert frames == 1
    expected, _ = run()
    # What follows a layer runs in float32 here and in bfloat16 there.
    assert losses == pytest.approx(expected, rel=0.02)
    assert losses != run(compiler, policy=LONG)[0]
    assert run(compiler, policy=LONG)[0] == pytest.approx(run(policy=LONG)[0], rel=1e-5)


@pytest.mark.parametrize("layer", ["conv2d of one picture", "transformers' Conv1D"])
def test_a_compiled_layer_gives_the_bits_of_the_plain_one(layer):
    make, shape = LAYERS[layer]
    results = []
    for compile in (False, True):
        module, _ = exact_layer(make)
        torch._dynamo.reset()
        assembled(module, SHORT, rounding="nearest", execution="bfloat16")
        forward = torch.compile(module, backend="aot_eager") if compile else module
        x = torch.randn(2, *shape[-3:], generator=torch.Generator().manual_seed(0)).requires_grad_()
        y = forward(x)
        y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1)))
        results.append((y.detach(), x.grad, module.weight.grad, module.bias.grad))
    for plain, compiled in zip(*results, strict=True):
        assert torch.equal(plain, compiled)


def test_layers_that_join_later_run_in_the_short_type_too():
    model = net()
    model[2].weight.requires_grad_(False)
    assembled(model, SHORT, execution="bfloat16")
    types = Types(model)
    model(torch.ones(2, 6))
    assert types == [torch.bfloat16, torch.bfloat16, torch.float32]
    types.clear()
    model[2].weight.requires_grad_(True)
    model(torch.ones(2, 6))
    types.clear()
    model(torch.ones(2, 6))
    assert types == [torch.bfloat16] * 3


def test_two_optimizers_of_one_module():
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    first = torch.optim.SGD(model[0].parameters(), lr=0.1)
    second = torch.optim.SGD(model[2].parameters(), lr=0.1)
    options = {"policy": SHORT, "execution": "bfloat16"}
    controllers = [adapt.attach(optimizer, model, **options) for optimizer in (first, second)]
    types = Types(model)
    assert model(torch.randn(4, 6)).dtype == torch.float32
    assert types == [torch.bfloat16, torch.bfloat16, torch.bfloat16]
    controllers[0].detach()
    types.clear()
    model(torch.randn(4, 6)).sum().backward()
    assert types == [torch.float32, torch.float32, torch.bfloat16]


@pytest.mark.parametrize(
    ("options", "message"), [({"execution": "int8"}, 'execution must be None, "bfloat16" or "float16", got \'int8\'')]
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        assembled(**options)


def test_execution_needs_a_module_with_layers_that_can_run():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="execution changes how the layers compute"):
        adapt.attach(optimizer, dict(model.named_parameters()), execution="bfloat16")
    embedding = nn.Embedding(3, 4)
    before = copies(embedding.named_parameters())
    optimizer = torch.optim.SGD(embedding.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="no linear layer or convolution"):
        adapt.attach(optimizer, embedding, execution="bfloat16")
    assert torch.equal(embedding.weight, before["weight"])
