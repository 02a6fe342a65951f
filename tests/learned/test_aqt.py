"""AQT: its equations against literal twins, and runs whose ranges are largest magnitudes."""

import contextlib
import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

import adapt
from adapt import export
from adapt.learned import aqt, attach_aqt
from tests.learned.networks import build, on_grid, pictures, train
from tests.references import learned as reference

STEPS, CALIBRATION = 20, 4

values = st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=30)
maxima = st.floats(2.0**-10, 8, width=32)
words = st.integers(2, 8)


def attached(steps=STEPS, **options):
    """A network under AQT: model, optimizer, learner."""
    model, optimizer = build()
    return model, optimizer, attach_aqt(optimizer, model, steps=steps, **options)


@given(values, maxima, words, st.booleans())
def test_rounding_is_the_papers(x, maximum, bits, signed):
    found = aqt(torch.tensor(x), torch.tensor(maximum), bits, signed=signed)
    step = maximum / (2 ** (bits - 1) - 1 if signed else 2**bits - 1)
    wanted = torch.tensor([reference.aqt(v, maximum, bits, signed) for v in x])
    # Of a value in the middle of two, float32 and double precision may choose another one.
    middle = torch.tensor([abs(abs(v / step) % 1 - 0.5) < 1e-4 for v in x])
    difference = (found - wanted).abs()
    assert (difference[~middle] <= 1e-6 * maximum).all()
    assert (difference[middle] <= step * (1 + 1e-5)).all()


@given(values, maxima, words, st.booleans())
def test_the_gradient_is_one_inside_of_the_range_and_zero_outside(x, maximum, bits, signed):
    x = torch.tensor(x, requires_grad=True)
    aqt(x, torch.tensor(maximum), bits, signed=signed).sum().backward()
    # At an end the product with the inverse step decides; the largest value itself is inside.
    near = (x.detach().abs() - maximum).abs() < 1e-6 * maximum
    inside = (x.detach().abs() <= maximum) & (signed | (x.detach() >= 0))
    assert torch.equal(x.grad[~near], inside[~near].float())


@given(values.filter(lambda x: max(map(abs, x)) > 2.0**-10), words)
def test_no_value_lies_outside_of_its_own_largest_magnitude(x, bits):
    x = torch.tensor(x, requires_grad=True)
    rounded = aqt(x, x.detach().abs().amax(), bits)
    rounded.sum().backward()
    assert (x.grad == 1).all()
    torch.testing.assert_close(rounded.abs().amax(), x.detach().abs().amax(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps"),
        ({"weight_bits": 1}, "weight_bits must be a whole number of 2 to 8 bits"),
        ({"first_bits": 9}, "first_bits"),
        ({"last_bits": None}, "last_bits"),
        ({"activation_bits": 4.0}, "activation_bits"),
        ({"activations_from": 1.5}, "activations_from must lie between 0 and 1"),
        ({"decay": -0.1}, "decay"),
    ],
)
def test_options_that_do_not_fit_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        attached(**options)


def test_the_function_refuses_what_does_not_fit():
    x = torch.ones(3)
    with pytest.raises(ValueError, match="bits must be a whole number of 2 to 8 bits, got 1"):
        aqt(x, torch.tensor(1.0), 1)
    with pytest.raises(ValueError, match="maximum must be above 0"):
        aqt(x, torch.tensor(0.0), 4)
    with pytest.raises(TypeError, match="maximum must be a tensor"):
        aqt(x, 1.0, 4)


def test_first_and_last_layers_have_their_own_widths_and_all_others_the_given_one():
    model, optimizer, learner = attached(weight_bits=3, activation_bits=5, first_bits=7, last_bits=6)
    train(model, optimizer, STEPS)
    found = {name: set(np.atleast_1d(form.word_length).tolist()) for name, form in learner.formats.items()}
    assert found == {
        "first.weight": {7}, "depthwise.weight": {3}, "grouped.weight": {3}, "up.weight": {3}, "head.weight": {6},
        "first.input": {7}, "depthwise.input": {5}, "grouped.input": {5}, "up.input": {5}, "head.input": {6},
    }  # fmt: skip


def test_weights_lie_on_the_grid_of_their_channels_largest_magnitude_in_every_step():
    model, optimizer, learner = attached()
    for step in range(3):
        train(model, optimizer, 1, first=step)
        form, master = learner.formats["grouped.weight"], learner.masters["grouped.weight"]
        largest = master.abs().amax((1, 2, 3))
        np.testing.assert_allclose(form.step, largest.numpy() / 7, rtol=1e-6)
        np.testing.assert_array_equal(form.minimum, -form.maximum)
        shown = model.grouped.weight.detach()
        torch.testing.assert_close(shown.abs().amax((1, 2, 3)), largest, rtol=1e-6, atol=0)
        for i in range(8):
            assert on_grid(shown[i], form.step[i])


def test_gradients_go_to_the_masters_unchanged():
    model, optimizer = build()
    plain, plain_optimizer = build()
    learner = attach_aqt(optimizer, model, steps=STEPS)
    plain.load_state_dict(model.state_dict())
    before = {name: master.clone() for name, master in learner.masters.items()}
    train(model, optimizer, 1)
    train(plain, plain_optimizer, 1)
    for name, parameter in plain.named_parameters():
        if name in before:
            torch.testing.assert_close(learner.masters[name], before[name] - 0.05 * parameter.grad)


def test_activations_are_float32_until_their_ranges_are_frozen_at_the_moving_average():
    model, optimizer, learner = attached(decay=0.7)
    met = {"first": [], "head": []}
    for name, one in met.items():
        getattr(model, name).register_forward_hook(lambda module, args, output, one=one: one.append(args[0].detach()))
    train(model, optimizer, CALIBRATION)
    inputs = [pictures(step)[0] for step in range(CALIBRATION)]
    assert all(torch.equal(seen, x) for seen, x in zip(met["first"], inputs, strict=True))
    for name, seen in met.items():
        top = 127 if name == "first" else 255
        wanted = reference.moving_average([float(x.abs().max()) for x in seen], 0.7)
        form = learner.formats[f"{name}.input"]
        assert float(form.step * top) == pytest.approx(wanted, rel=1e-5)
        assert bool(form.signed) == (name == "first")
    before = learner.steps["head.input"].copy()
    train(model, optimizer, 5, first=CALIBRATION)
    assert on_grid(met["first"][-1], float(learner.formats["first.input"].step))
    np.testing.assert_array_equal(learner.steps["head.input"], before)
    assert learner.widths.of("head.weight.input")[:, 0].tolist() == [32, 8]


def test_evaluation_does_not_calibrate_and_rounds_once_ranges_are_known():
    model, optimizer, learner = attached()
    train(model, optimizer, CALIBRATION - 1)
    model.eval()
    model(100 * pictures(7)[0])
    model.train()
    train(model, optimizer, 1, first=CALIBRATION - 1)
    assert float(learner.ranges["first.input"][0]) < 10
    assert "first.input" in learner.formats


def test_weights_alone():
    model, optimizer, learner = attached(activation_bits=None)
    train(model, optimizer, STEPS)
    assert set(learner.formats) == set(learner.masters)
    assert learner.phase == "aqt"
    assert learner.trace.step.tolist() == [1, 20]


def test_inputs_that_never_come_stay_float32_with_a_warning():
    class Idle(nn.Sequential):
        def forward(self, x):
            return self[0](x)

    model = Idle(nn.Linear(3, 2), nn.Linear(2, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    learner = attach_aqt(optimizer, model, steps=5)
    model(torch.ones(4, 3)).sum().backward()
    with pytest.warns(UserWarning, match=r"has reached 1.weight.input in the first 1 steps"):
        optimizer.step()
    assert "0.input" in learner.formats
    assert "1.input" not in learner.formats


def test_weights_that_are_loaded_later_get_ranges_of_their_own():
    model, optimizer, learner = attached()
    other, _ = build(seed=1)
    state = {name: 3 * value if value.is_floating_point() else value for name, value in other.state_dict().items()}
    model.load_state_dict(state)
    train(model, optimizer, 1)
    torch.testing.assert_close(learner.masters["head.weight"], state["head.weight"], rtol=0, atol=0.2)
    np.testing.assert_allclose(
        learner.ranges["head.weight"], learner.masters["head.weight"].abs().amax(1).numpy(), rtol=1e-6
    )


@pytest.mark.parametrize("until", [2, CALIBRATION, 9])
def test_a_resumed_run_is_the_same_bit_for_bit(until):
    model, optimizer, learner = attached()
    train(model, optimizer, until)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    train(model, optimizer, STEPS - until, first=until)
    resumed, its_optimizer, its_learner = attached()
    train(resumed, its_optimizer, 3)
    resumed.load_state_dict(saved[0])
    its_optimizer.load_state_dict(saved[1])
    train(resumed, its_optimizer, STEPS - until, first=until)
    for name, value in model.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    for name, value in learner.masters.items():
        assert torch.equal(its_learner.masters[name], value), name
    assert repr(its_learner.formats) == repr(learner.formats)
    assert its_learner.widths.word_length.tolist() == learner.widths.word_length.tolist()
    assert its_learner.trace.step.tolist() == learner.trace.step.tolist()


def test_a_state_of_another_kind_is_refused():
    _, optimizer, _ = attached()
    model, lsq_optimizer = build()
    adapt.learned.attach_lsq(lsq_optimizer, model, weight_bits=4)
    with pytest.raises(ValueError, match="not of MaximumRanges"):
        optimizer.load_state_dict(lsq_optimizer.state_dict())


@settings(deadline=None, max_examples=10)
@given(words, words)
def test_the_captured_network_computes_the_same(weight_bits, activation_bits):
    model, optimizer, learner = attached(weight_bits=weight_bits, activation_bits=activation_bits)
    train(model, optimizer, 6)
    model.eval()
    captured = export.capture(learner, inputs=pictures(50)[0])
    assert captured.words["grouped.weight"].abs().max() == 2 ** (weight_bits - 1) - 1


@pytest.mark.parametrize("after", [2, 9], ids=["observing", "rounding"])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_passes_between_forward_and_backward_change_no_gradient(compiled, after):
    torch._dynamo.reset()
    model, optimizer = build()
    network = torch.compile(model, backend="aot_eager") if compiled else model
    learner = attach_aqt(optimizer, network, steps=STEPS)
    train(model, optimizer, after)
    x, y = pictures(40)
    found = []
    for between in (False, True):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(x), y)
        if between:
            with learner.master_weights(), torch.no_grad():
                network(pictures(41)[0])
            network.eval()(pictures(42)[0])
            network.train()
            model.state_dict()
            optimizer.state_dict()
        loss.backward()
        found.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(left, right) for left, right in zip(*found, strict=True))
    train(model, optimizer, 2, first=after)


@pytest.mark.parametrize("reentrant", [False, True])
def test_repeated_passes_of_activation_checkpointing_change_nothing(reentrant):
    found = []
    for checkpointed in (False, True):
        model, optimizer, learner = attached()
        for step in range(CALIBRATION + 3):
            x, y = pictures(step)
            x.requires_grad_()
            output = checkpoint(model, x, use_reentrant=reentrant) if checkpointed else model(x)
            optimizer.zero_grad()
            nn.functional.cross_entropy(output, y).backward()
            optimizer.step()
        found.append([*learner.masters.values(), *map(torch.from_numpy, learner.ranges.values())])
    for left, right in zip(*found, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-6)


def test_weights_that_are_written_in_place_become_masters_and_ranges_follow():
    model, optimizer, learner = attached()
    train(model, optimizer, CALIBRATION + 2)
    master = learner.masters["first.weight"].clone()
    with torch.no_grad():
        model.head.weight.fill_(0.3)
        model.first.weight[0].zero_()
    saved = model.state_dict()
    assert (learner.masters["head.weight"] == torch.full((), 0.3)).all()
    torch.testing.assert_close(saved["head.weight"], torch.full_like(model.head.weight, 0.3))
    np.testing.assert_allclose(learner.ranges["head.weight"], 0.3, rtol=1e-6)
    assert not saved["first.weight"][0].any()
    assert torch.equal(learner.masters["first.weight"][1:], master[1:])
    train(model, optimizer, 2, first=CALIBRATION + 2)
    assert learner.masters["first.weight"][0].any()


@pytest.mark.parametrize("scale", [1024.0, 2.0**127], ids=["fits", "overflows"])
def test_a_scaler_changes_neither_weights_nor_ranges(scale):
    found = []
    for enabled in (False, True):
        model, optimizer, learner = attached()
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=enabled)
        step = 0
        while learner.step < CALIBRATION + 2:
            x, y = pictures(step)
            optimizer.zero_grad()
            scaler.scale(nn.functional.cross_entropy(model(x), y)).backward()
            before = scaler.get_scale()
            scaler.step(optimizer)
            scaler.update()
            step += scaler.get_scale() >= before
        found.append([*learner.masters.values(), *map(torch.from_numpy, learner.ranges.values())])
    for left, right in zip(*found, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("frozen", [False, True])
def test_weights_that_are_loaded_after_activations_are_frozen_are_told_of(frozen):
    model, optimizer, _ = attached()
    train(model, optimizer, CALIBRATION + 1 if frozen else 1)
    model.load_state_dict(build(seed=1)[0].state_dict())
    with (
        pytest.warns(UserWarning, match=r"formats of first\.input.* still fit the earlier weights")
        if frozen
        else contextlib.nullcontext()
    ):
        model(pictures(0)[0])


def test_detached_networks_can_go_on_rounding():
    model, optimizer, learner = attached()
    train(model, optimizer, STEPS)
    model.eval()
    x = pictures(50)[0]
    before = model(x)
    learner.detach(keep_activations=True)
    assert torch.equal(model(x), before)


def test_bits_by_hand_go_before_all_others_and_are_saved():
    bits = {"first.*": 5, "grouped": (6, 8), "head.weight": (2, 3)}
    model, optimizer, learner = attached(layer_bits=bits)
    train(model, optimizer, 9)
    found = {name: set(np.atleast_1d(form.word_length).tolist()) for name, form in learner.formats.items()}
    assert found == {
        "first.weight": {5}, "depthwise.weight": {4}, "grouped.weight": {6}, "up.weight": {4}, "head.weight": {3},
        "first.input": {5}, "depthwise.input": {4}, "grouped.input": {6}, "up.input": {4}, "head.input": {8},
    }  # fmt: skip
    resumed, its_optimizer, its_learner = attached()
    resumed.load_state_dict(model.state_dict())
    its_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for one in ((model, optimizer), (resumed, its_optimizer)):
        train(*one, 3, first=9)
    assert repr(its_learner.formats) == repr(learner.formats)


def test_another_length_takes_effect_unless_the_ranges_are_frozen():
    model, optimizer, learner = attached()
    learner.use_steps(10 * STEPS)
    train(model, optimizer, CALIBRATION)
    assert "first.input" not in learner.formats
    learner.use_steps(STEPS)
    train(model, optimizer, 1, first=CALIBRATION)
    assert "first.input" in learner.formats


def test_there_is_nothing_to_calibrate():
    _, _, learner = attached()
    with pytest.raises(ValueError, match="there is nothing to calibrate"):
        learner.calibrate([pictures(0)[0]])
