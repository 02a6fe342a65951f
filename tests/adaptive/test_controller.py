"""One step of the controller: what it costs, when it decides, and what it does to gradients and weights."""

import gc
import math
from collections import Counter
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import adapt
from adapt.adaptive.step_figures import StepFigures
from adapt.kernels import backend, set_backend
from tests.training import RESTLESS, assembled, batch, copies, is_on_grid, loss_of, net, train

# What a step costs


def spied(method, note):
    """The method, with a note of every call."""

    def spying(*args, **kwargs):
        note()
        return method(*args, **kwargs)

    return spying


@pytest.fixture
def calls(monkeypatch):
    """How often masters were stored and rounded into parameters, and how often figures were fetched."""
    counts, kernels = Counter(), backend("cpu")
    quantize = kernels.quantize_

    def rounding(sources, outputs, *rest):
        # Policies round copies of the weights.
        counts["quantize_"] += any(isinstance(output, nn.Parameter) for output in outputs)
        quantize(sources, outputs, *rest)

    monkeypatch.setattr(kernels, "quantize_", rounding)
    for owner, name in ((kernels, "store_"), (kernels, "descend_"), (StepFigures, "take")):
        monkeypatch.setattr(owner, name, spied(getattr(owner, name), partial(counts.update, [name])))
    return counts


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_each_step_quantises_once(calls, micro_batches):
    model, optimizer, controller = assembled()
    calls.clear()
    for step in range(10):
        optimizer.zero_grad()
        for micro in range(micro_batches):
            loss = loss_of(model, micro_batches * step + micro)
            (loss / micro_batches).backward()
            controller.observe(loss)
        optimizer.step()
    assert (calls["descend_"], calls["store_"], calls["quantize_"]) == (10, 0, 0)


def test_evaluation_quantises_when_the_mode_changes_and_not_again(calls):
    model, optimizer, controller = assembled()
    train(model, optimizer, 3, controller=controller)
    calls.clear()
    model.eval()
    for _ in range(5):
        model(batch(0)[0])
    model.train()
    for _ in range(5):
        model(batch(0)[0])
    assert calls["store_"] == calls["descend_"] == 0
    assert calls["quantize_"] == 4, "two layers, there and back"


def test_nearest_rounding_has_no_second_view_to_make(calls):
    model, optimizer, controller = assembled(rounding="nearest")
    train(model, optimizer, 3, controller=controller)
    calls.clear()
    model.eval()(batch(0)[0])
    model.train()(batch(0)[0])
    assert calls["quantize_"] == 0


def test_no_gradient_is_kept():
    torch.manual_seed(0)
    model = nn.Linear(11, 13)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    controller = adapt.attach(optimizer, model, adapt.AdaPT(lookback=(25, 60)))

    def live():
        gc.collect()
        return sum(issubclass(type(o), torch.Tensor) and o.shape == model.weight.shape for o in gc.get_objects())

    def run(steps):
        for step in range(steps):
            optimizer.zero_grad()
            loss = model(batch(step, features=11)[0]).square().mean()
            loss.backward()
            controller.observe(loss)
            optimizer.step()

    run(2)
    after_two = live()
    run(30)
    assert live() == after_two


def test_algorithm_4_keeps_the_gradients_of_the_window_only():
    model, optimizer, controller = assembled(policy=adapt.AdaPT(lookback=(3, 5), push_up="diversity"))
    longest = 0
    for step in range(20):
        train(model, optimizer, 1, step, controller)
        longest = max(longest, *(len(window) for window in controller.state_dict()["windows"].values()))
    assert 2 <= longest <= 4, "a window of five ends with its fifth gradient"


SYNCHRONISING = ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__", "__array__")


def test_nothing_waits_for_the_device_while_no_layer_can_switch(monkeypatch):
    """On the reference back end, which is made of torch operations only, as on a device."""
    set_backend("torch")
    model, optimizer, controller = assembled(policy=adapt.AdaPT(lookback=(20, 20)), l1=1e-4, l2=1e-3)
    waits = []
    for name in SYNCHRONISING:
        monkeypatch.setattr(torch.Tensor, name, spied(getattr(torch.Tensor, name), partial(waits.append, name)))
    try:
        for step in range(40):
            optimizer.zero_grad()
            loss = loss_of(model, step)
            loss.backward()
            waits.clear()
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
                controller.observe(loss)
                optimizer.step()
            scalars = [event for event in profile.events() if event.name == "aten::_local_scalar_dense"]
            if not step:
                continue  # whether the weights were replaced since attaching is looked at before the first step
            if (step + 1) % 20:
                assert not waits
                assert not scalars
            else:
                assert waits.count("cpu") >= 1, "the window is full: figures must be fetched"
    finally:
        set_backend(None)


def test_figures_are_fetched_once_for_a_window(calls):
    model, optimizer, controller = assembled(policy=adapt.AdaPT(lookback=(20, 20)))
    train(model, optimizer, 60, controller=controller)
    assert calls["take"] == 3
    model, optimizer, controller = assembled(policy=adapt.Fixed(adapt.Precision(8, 6)))
    calls.clear()
    train(model, optimizer, 300)
    assert calls["take"] == 2, "a fixed format needs no figures but for the trace, when the buffer is full"
    assert len(controller.trace) == 300


# When it decides


@dataclass(frozen=True)
class Impatient(adapt.AdaPT):
    """AdaPT that wants to see every step at once."""

    def patience(self, state):
        return 0


@st.composite
def hyperparameters(draw):
    lower = draw(st.integers(1, 12))
    return {
        "lookback": (lower, draw(st.integers(lower, 30))),
        "lookback_momentum": draw(st.sampled_from([0.0, 0.1, 0.33, 0.9, 1.0])),
        "resolution": draw(st.sampled_from([(5, 5), (6, 30), (50, 150)])),
        "buffer_bits": draw(st.integers(0, 8)),
        "kl_tolerance": draw(st.sampled_from([0.0, 0.01, 0.5])),
        "push_up": draw(st.sampled_from(["suggestion", "suggestion", "diversity"])),
        "quantize_gradients": draw(st.booleans()),
    }


def replayed(policy, seed, steps, gaps, agreement):
    """A run on given gradients, without a network; `agreement` draws them towards one direction."""
    generator = torch.Generator().manual_seed(seed)
    parameters = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((5, 4), (3, 7), (2, 2))]
    optimizer = torch.optim.SGD(parameters, lr=2.0**-6)
    controller = adapt.attach(optimizer, parameters, policy, seed=seed)
    common = [torch.randn(p.shape, generator=generator) for p in parameters]
    for _ in range(steps):
        for parameter, direction in zip(parameters, common, strict=True):
            noise = torch.randn(parameter.shape, generator=generator)
            missing, broken = torch.rand(2, generator=generator).tolist()
            parameter.grad = None if missing < gaps else agreement * direction + noise
            if broken < gaps / 4 and parameter.grad is not None:
                parameter.grad[0, 0] = math.nan
        if torch.rand((), generator=generator) > gaps:
            controller.observe(torch.rand((), generator=generator))
        optimizer.step()
    return controller


@pytest.mark.filterwarnings(
    "ignore:the gradient of:UserWarning",
    "ignore:the controller never saw:UserWarning",
    "ignore:every quantised:UserWarning",
)
@settings(max_examples=20)
@given(hyperparameters(), st.integers(0, 2**31), st.sampled_from([0.0, 0.3]), st.sampled_from([0.0, 0.5, 5.0]))
def test_waiting_changes_no_decision(options, seed, gaps, agreement):
    """Figures that wait on the device and are replayed later lead where a look at every step leads."""
    patient, impatient = (replayed(policy(**options), seed, 60, gaps, agreement) for policy in (adapt.AdaPT, Impatient))
    for name, master in patient.masters.items():
        assert torch.equal(master, impatient.masters[name])
    assert patient.precisions == impatient.precisions
    assert patient.skipped == impatient.skipped
    ours, theirs = patient.trace, impatient.trace
    for field in ("step", "word_length", "fraction_length", "nonzero", "lookback", "resolution", "diversity"):
        np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field), field)
    np.testing.assert_array_equal(ours.divergence, theirs.divergence)


def test_reading_the_trace_at_any_time_changes_nothing():
    runs = []
    for curious in (False, True):
        model, optimizer, controller = assembled()
        for step in range(25):
            train(model, optimizer, 1, step, controller)
            if curious:
                assert len(controller.trace) == step + 1
                assert controller.skipped == {"0.weight": 0, "2.weight": 0}
        runs.append((copies(controller.masters), controller.trace))
    (masters, trace), (other_masters, other_trace) = runs
    assert all(torch.equal(master, other_masters[name]) for name, master in masters.items())
    for field in ("step", "word_length", "fraction_length", "nonzero", "lookback", "resolution", "diversity"):
        np.testing.assert_array_equal(getattr(trace, field), getattr(other_trace, field), field)


def test_a_row_of_the_trace_tells_what_the_step_left():
    model, optimizer, controller = assembled()
    for step in range(12):
        train(model, optimizer, 1, step, controller)
        trace = controller.trace
        assert trace.step[-1] == controller.step == step + 1
        for i, (name, precision) in enumerate(controller.precisions.items()):
            seen = dict(model.named_parameters())[name]
            assert trace.word_length[-1, i] == precision.word_length
            assert trace.fraction_length[-1, i] == precision.fraction_length
            assert trace.nonzero[-1, i] == pytest.approx(seen.count_nonzero().item() / seen.numel())
    assert np.isnan(controller.trace.divergence[0]).all()
    assert not np.isnan(controller.trace.divergence[-1]).any()


def test_trace_every_keeps_every_kth_row():
    model, optimizer, controller = assembled()
    train(model, optimizer, 20, controller=controller)
    model, optimizer, sparse = assembled(trace_every=6)
    train(model, optimizer, 20, controller=sparse)
    assert sparse.trace.step.tolist() == [6, 12, 18]
    np.testing.assert_array_equal(sparse.trace.word_length, controller.trace.word_length[5::6])
    np.testing.assert_array_equal(sparse.trace.nonzero, controller.trace.nonzero[5::6])


# What it does to gradients and weights


def test_normalisation_and_penalties_are_those_of_the_equations():
    model, optimizer, controller = assembled(policy=adapt.AdaPT(), l1=0.003, l2=0.02, lr=1.0)
    masters = copies(controller.masters)
    loss_of(model, 0).backward()
    gradients = copies({name: p.grad for name, p in model.named_parameters()})
    controller.observe(1.0)
    optimizer.step()
    for name, master in masters.items():
        gradient = gradients[name] / gradients[name].norm()
        expected = master - (gradient + 0.003 * master.sign() + 0.02 * master)
        torch.testing.assert_close(controller.masters[name], expected, rtol=1e-5, atol=1e-6)


def test_without_normalisation_a_grid_that_holds_everything_makes_plain_sgd():
    model, plain = net(), net()
    policy = adapt.Fixed(adapt.Precision(32, 26))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    adapt.attach(optimizer, model, policy, rounding="nearest")
    train(model, optimizer, 20)
    train(plain, torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9), 20)
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("word_length", [4, 16, 32])
def test_word_length_can_scale_the_l1_penalty(word_length):
    policy = adapt.Fixed(adapt.Precision(word_length, word_length - 2))
    model, optimizer, controller = assembled(policy=policy, l1=0.01, l1_by_word_length=True, lr=1.0)
    masters = copies(controller.masters)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, master in masters.items():
        expected = master - 0.01 * word_length / 32 * master.sign()
        torch.testing.assert_close(controller.masters[name], expected)


@pytest.mark.parametrize("by_word_length", [False, True])
def test_penalty_is_the_sum_of_the_equations(by_word_length):
    model, optimizer, controller = assembled(l1=0.003, l2=0.02, l1_by_word_length=by_word_length)
    train(model, optimizer, 5, controller=controller)
    words = [p.word_length for p in controller.precisions.values()]
    alphas = [0.003 * w / 32 if by_word_length else 0.003 for w in words]
    expected = sum(
        alpha * master.abs().sum().item() + 0.01 * master.square().sum().item()
        for alpha, master in zip(alphas, controller.masters.values(), strict=True)
    )
    shares = [(p != 0).double().mean().item() for p in (model[0].weight, model[2].weight)]
    expected += sum(w / 32 * share for w, share in zip(words, shares, strict=True)) / 2
    found = controller.penalty()
    assert found.shape == ()
    assert not found.requires_grad
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_the_policy_sees_the_loss_with_penalties_averaged_over_micro_batches():
    seen = []

    @dataclass(frozen=True)
    class Watching(adapt.AdaPT):
        def advance(self, state, observation):
            seen.append(observation.loss)
            return super().advance(state, observation)

    model, optimizer, controller = assembled(policy=Watching(), l1=0.003, l2=0.02)
    expected = []
    for losses in ([1.0, 3.0], [torch.tensor(2.0)], [np.float32(0.25), 1, torch.tensor([[4.0]])]):
        loss_of(model, 0).backward()
        expected.append(sum(float(loss) for loss in losses) / len(losses) + controller.penalty().item())
        for loss in losses:
            controller.observe(loss)
        optimizer.step()
    loss_of(model, 0).backward()
    with pytest.warns(UserWarning, match="never saw the loss"):
        optimizer.step()
    assert len(controller.trace) == 4
    assert seen[:3] == pytest.approx(expected, rel=1e-6)
    assert seen[3] is None


def test_a_loss_that_was_observed_outweighs_the_closures():
    losses = []

    @dataclass(frozen=True)
    class Watching(adapt.AdaPT):
        def advance(self, state, observation):
            losses.append(observation.loss)
            return super().advance(state, observation)

    model, optimizer, controller = assembled(policy=Watching())

    def closure(shown=None):
        optimizer.zero_grad()
        loss = loss_of(model, 0)
        loss.backward()
        if shown is not None:
            controller.observe(shown)
        return loss

    extra = controller.penalty().item()
    value = optimizer.step(closure).item()
    optimizer.step(lambda: closure(7.0))
    assert len(controller.trace) == 2
    assert losses == pytest.approx([value + extra, 7.0 + extra], abs=0.05)


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (torch.zeros(2), ValueError, r"loss must be a single number, got shape \(2,\): reduce it first"),
        ("low", TypeError, "loss must be a tensor or a number, got str"),
        (None, TypeError, "loss must be a tensor or a number, got NoneType"),
    ],
)
def test_a_loss_must_be_one_number(loss, error, message):
    _, _, controller = assembled()
    with pytest.raises(error, match=message):
        controller.observe(loss)


def test_biases_and_norms_can_be_quantised_in_their_layers_word_length():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3))
    with torch.no_grad():
        model[0].bias.mul_(20.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    controller = adapt.attach(optimizer, model, RESTLESS, quantize_biases=True)
    assert list(controller.precisions) == ["0.weight", "3.weight"]
    masters = copies(controller.masters)
    leaders = {"0.bias": "0.weight", "1.weight": "0.weight", "1.bias": "0.weight", "3.bias": "3.weight"}
    formats = []
    for step in range(20):
        train(model, optimizer, 1, step, controller)
        formats.append(dict(controller.precisions))
        for mode in (True, False):
            model.train(mode)(batch(step)[0])
            for name, leader in leaders.items():
                values = dict(model.named_parameters())[name]
                word_length = controller.precisions[leader].word_length
                found = [fl for fl in range(-8, 40) if is_on_grid(values, adapt.Precision(word_length, fl))]
                assert found, f"{name} is on no grid of {word_length} bits"
    assert len({tuple(f.items()) for f in formats}) > 1
    assert not torch.equal(controller.masters["0.weight"], masters["0.weight"])
    assert set(controller.trace.layers) == {"0.weight", "3.weight"}


def test_a_bias_gets_the_finest_format_that_holds_it():
    model, _, controller = assembled(quantize_biases=True)
    with torch.no_grad():
        values = torch.linspace(-1, 0.9, len(model[0].bias))
    model.load_state_dict({**model.state_dict(), "0.bias": values})
    controller.detach("masters")
    assert torch.equal(model[0].bias, values)
    other = adapt.attach(torch.optim.SGD(model.parameters(), lr=0.1), model, RESTLESS, quantize_biases=True)
    step = 2.0**-7
    assert torch.equal(model.eval().state_dict()["0.bias"], (values / step).round() * step)
    assert set(other.precisions) == {"0.weight", "2.weight"}


def test_biases_are_fitted_anew_when_the_window_of_their_layer_ends():
    policy = adapt.AdaPT(lookback=(4, 4), initial=adapt.Precision(8, 7))
    model, optimizer, controller = assembled(policy=policy, quantize_biases=True, lr=1.0)
    for step in range(1, 9):
        # Both biases grow far beyond their first format, but only the second layer gets gradients.
        for name, parameter in model.named_parameters():
            parameter.grad = torch.full_like(parameter, -4.0) if "bias" in name else None
        model[2].weight.grad = torch.full_like(model[2].weight, 1e-3)
        controller.observe(1.0)
        optimizer.step()
        assert (model[2].bias.max() > 4).item() is (step >= 4), step
        assert model[0].bias.max() < 1, "saturated, since the window of its layer never ends"


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_gradients_in_another_order_in_memory_are_the_same_gradients(momentum):
    runs = []
    for transposed in (False, True):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=momentum)
        controller = adapt.attach(optimizer, model, RESTLESS, l1=1e-3)
        for step in range(10):
            for index, parameter in enumerate(model.parameters()):
                generator = torch.Generator().manual_seed(7 * step + index)
                gradient = torch.randn(parameter.shape, generator=generator)
                if transposed and gradient.ndim == 2:
                    gradient = gradient.t().contiguous().t()
                    assert not gradient.is_contiguous()
                parameter.grad = gradient
            controller.observe(1.0)
            optimizer.step()
        runs.append(copies(controller.masters))
    assert all(torch.equal(master, runs[1][name]) for name, master in runs[0].items())


def test_biases_stay_in_float32_otherwise():
    model, optimizer, controller = assembled()
    before = model[0].bias.detach().clone()
    gradient = torch.full_like(before, 0.1)
    controller.observe(1.0)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    model[0].bias.grad = gradient
    optimizer.step()
    torch.testing.assert_close(model[0].bias.detach(), before - 0.05 * gradient, rtol=0, atol=0)
