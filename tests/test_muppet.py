"""MuPPET through the public face: a plain loop, its trace, evaluation, loading, and everything that follows formats."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

import adapt
from adapt.numerics import block_precision
from tests.training import CLIMBING, Witness, assembled, batch, copies, is_on_grid, loss_of, net, train

EPOCH = CLIMBING.steps_per_epoch
SWIFT = adapt.MuPPET(EPOCH, (8, 12), window=2, violations=1, threshold=(0.0, 0.0, 0.0))
"""Every second epoch raises the word length: 8 bits, 12, float32."""


def scaled_to(weights, word_length):
    """The format that block floating point has for these weights."""
    return block_precision(weights.min().item(), weights.max().item(), word_length)


def test_the_word_length_climbs_at_epoch_ends_to_float32_and_stays_there():
    model, optimizer, controller = assembled(policy=CLIMBING)
    witness = Witness(model, controller)
    train(model, optimizer, 120, controller=controller)
    witness.check(120)
    trace = controller.trace
    words = trace.word_length
    assert (words == words[:, :1]).all(), "one word length for all layers"
    words = words[:, 0]
    assert words[0] == 8
    assert words[-1] == 32
    assert set(words) == {8, 12, 14, 16, 32}
    assert (np.diff(words) >= 0).all()
    switches = trace.step[1:][np.diff(words) > 0]
    assert (switches % (EPOCH * CLIMBING.window) == 0).all()
    assert (trace.fraction_length[words == 32] == 0).all()
    assert controller.precisions == {"0.weight": None, "2.weight": None}
    for name, master in controller.masters.items():
        assert torch.equal(model.get_parameter(name), master)


def test_in_float32_it_is_plain_training():
    model, optimizer, controller = assembled(policy=SWIFT)
    train(model, optimizer, 4 * EPOCH, controller=controller)
    assert set(controller.precisions.values()) == {None}
    plain = net()
    plain.load_state_dict(model.state_dict())
    plain_optimizer = torch.optim.SGD(plain.parameters(), lr=0.05)
    train(model, optimizer, 140, 50, controller)
    train(plain, plain_optimizer, 140, 50)
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name))


def test_the_scale_follows_the_weights_and_the_trace_tells_it():
    model, optimizer, controller = assembled(policy=adapt.MuPPET(steps_per_epoch=50), lr=0.5)
    expected = []
    for step in range(100):
        train(model, optimizer, 1, step, controller)
        expected.append([scaled_to(master, 8).fraction_length for master in controller.masters.values()])
        assert [p.fraction_length for p in controller.precisions.values()] == expected[-1]
    assert controller.trace.fraction_length.tolist() == expected
    assert len({tuple(row) for row in expected}) > 2, "scales that never move would prove little"
    assert (controller.trace.word_length == 8).all()


def test_the_diversity_is_that_of_the_epochs_last_gradients():
    model, optimizer, controller = assembled(policy=adapt.MuPPET(steps_per_epoch=3, window=2))
    gradients = []
    for step in range(6):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        gradients.append([model[0].weight.grad.clone(), model[2].weight.grad.clone()])
        optimizer.step()
        # Reading lets the policy see the steps so far, whose number must not matter.
        assert len(controller.trace) == step + 1
    for layer in range(2):
        first, second = gradients[2][layer].double(), gradients[5][layer].double()
        expected = (first.square().sum() + second.square().sum()) / (first + second).square().sum()
        assert controller.trace.diversity[-1, layer] == pytest.approx(expected.item(), rel=1e-5)
    assert np.isinf(controller.trace.diversity[:-1]).all()


def test_a_layer_without_a_gradient_at_the_windows_end_starts_anew_like_the_others():
    model, optimizer, controller = assembled(policy=adapt.MuPPET(steps_per_epoch=1, window=2))
    gradients = []
    for step in range(4):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        gradients.append(model[0].weight.grad.double())
        if step == 1:
            model[0].weight.grad = None
        elif step == 3:
            model[2].weight.grad.fill_(torch.nan)
        with pytest.warns(UserWarning, match=r"gradient of 2\.weight is not finite") if step == 3 else nullcontext():
            optimizer.step()
    found = controller.trace.diversity
    assert found[1, 0] == pytest.approx(1), "of the one gradient that there was"
    first, second = gradients[2:]
    expected = (first.square().sum() + second.square().sum()) / (first + second).square().sum()
    assert found[3, 0] == pytest.approx(expected.item(), rel=1e-5)
    assert found[3, 1] == pytest.approx(1)


@pytest.mark.parametrize("look", [1, 3])
def test_looking_at_the_trace_changes_nothing(look):
    def run(look):
        model, optimizer, controller = assembled(policy=CLIMBING, quantize_biases=True)
        for step in range(40):
            train(model, optimizer, 1, step, controller)
            if look and step % look == 0:
                controller.trace, controller.skipped  # noqa: B018
        return copies(model.named_parameters()), controller.trace.state_dict()

    (weights, trace), (expected, expected_trace) = run(look), run(0)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert trace.keys() == expected_trace.keys()
    for name, value in expected_trace.items():
        if torch.is_tensor(value):
            torch.testing.assert_close(trace[name], value, rtol=0, atol=0, equal_nan=True)
        else:
            assert trace[name] == value, name


def test_evaluation_and_detaching_show_the_masters_rounded_to_nearest():
    model, optimizer, controller = assembled(policy=adapt.MuPPET(steps_per_epoch=50))
    train(model, optimizer, 7, controller=controller)
    rounded = {n: adapt.quantize(m, scaled_to(m, 8)) for n, m in controller.masters.items()}
    model.eval()(batch(0)[0])
    for name, expected in rounded.items():
        assert torch.equal(model.get_parameter(name), expected)
    saved = model.train().state_dict()
    controller.detach()
    for name, expected in rounded.items():
        assert torch.equal(saved[name], expected)
        assert torch.equal(model.get_parameter(name), expected)


@pytest.mark.parametrize("factor", [100.0, 0.01, 0.0])
def test_weights_that_are_loaded_bring_their_scale(factor):
    model, optimizer, controller = assembled(policy=adapt.MuPPET(steps_per_epoch=50))
    train(model, optimizer, 3, controller=controller)
    other = net(1)
    model.load_state_dict({name: factor * p for name, p in other.state_dict().items()})
    for name, master in controller.masters.items():
        assert torch.equal(master, factor * other.get_parameter(name))
        precision = scaled_to(master, 8)
        assert controller.precisions[name] == precision
        parameter = model.get_parameter(name)
        assert is_on_grid(parameter, precision)
        assert (parameter - master).abs().max() <= precision.step
    train(model, optimizer, 3, 3, controller)


def test_values_from_elsewhere_are_rounded_with_their_own_scale():
    model, _, controller = assembled(policy=adapt.MuPPET(steps_per_epoch=50))
    before = controller.precisions
    with torch.no_grad():
        model[0].weight.mul_(64)
    values = model[0].weight.detach().clone()
    controller.quantize_()
    assert torch.equal(model[0].weight, adapt.quantize(values, scaled_to(values, 8)))
    assert controller.precisions == before


def test_layers_that_start_at_zero_find_their_scale():
    model = net()
    with torch.no_grad():
        model[2].weight.zero_()
    model, optimizer, controller = assembled(model, adapt.MuPPET(steps_per_epoch=50))
    assert controller.precisions["2.weight"] == adapt.Precision(8, 7)
    assert not model[2].weight.any()
    train(model, optimizer, 1, controller=controller)
    assert model[2].weight.any()
    assert controller.precisions["2.weight"].fraction_length > 7


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_weights_that_are_not_finite_stop_nothing(value):
    model, optimizer, controller = assembled(policy=SWIFT)
    model.load_state_dict({**model.state_dict(), "2.weight": torch.full((3, 8), value)})
    assert controller.precisions["2.weight"].fraction_length < -100
    with pytest.warns(UserWarning, match="not finite"):
        train(model, optimizer, 4 * EPOCH, controller=controller)
    assert (controller.trace.word_length == 8).all(), "gradients that are not finite say nothing"
    model.load_state_dict(net().state_dict())
    train(model, optimizer, 4 * EPOCH, controller=controller)
    assert set(controller.precisions.values()) == {None}


def test_layers_that_join_take_over_the_word_length():
    model = net()
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.05)
    controller = adapt.attach(optimizer, model, SWIFT)
    train(model, optimizer, 2 * EPOCH, controller=controller)
    assert controller.precisions["2.weight"].word_length == 12
    optimizer.add_param_group({"params": model[0].parameters()})
    train(model, optimizer, 1, controller=controller)
    assert {p.word_length for p in controller.precisions.values()} == {12}
    train(model, optimizer, 2 * EPOCH, controller=controller)
    assert set(controller.precisions.values()) == {None}


def test_biases_have_a_scale_of_their_own():
    model, optimizer, controller = assembled(policy=SWIFT, quantize_biases=True)
    for epochs, word_length in ((1, 8), (2, 12)):
        train(model, optimizer, epochs * EPOCH, controller=controller)
        for name, master in controller.state_dict()["followers"].items():
            precision = scaled_to(master, word_length)
            bias = model.get_parameter(name)
            assert is_on_grid(bias, precision)
            assert (bias - master).abs().max() <= precision.step
    train(model, optimizer, 2 * EPOCH, controller=controller)
    for name, master in controller.state_dict()["followers"].items():
        assert torch.equal(model.get_parameter(name), master)


@pytest.mark.parametrize("mode", ["layer", "range"])
def test_activations_and_errors_follow_their_ranges(mode):
    model, optimizer, controller = assembled(policy=SWIFT, activations=mode, quantize_errors=True)
    seen = []
    model[0].register_forward_hook(lambda module, args, output: seen.append(output.detach().clone()))
    for step in range(4 * EPOCH):
        forms = controller.activation_precisions
        words = {p.word_length for p in controller.precisions.values() if p is not None}
        train(model, optimizer, 1, step, controller)
        if step == 0 and mode == "layer":
            assert set(forms.values()) == {None}, "no range is known before the first step"
        elif step > 0:
            assert {form.word_length for form in forms.values()} == words
            assert is_on_grid(seen[-1], forms["0.weight.output"])
    assert set(controller.activation_precisions.values()) == {None}


def test_gradients_are_rounded_each_with_its_own_scale():
    model, optimizer, controller = assembled(policy=adapt.MuPPET(steps_per_epoch=50, quantize_gradients=True))
    loss_of(model, 0).backward()
    gradients = copies((n, p.grad) for n, p in model.named_parameters())
    optimizer.step()
    for name in controller.precisions:
        precision = scaled_to(gradients[name], 8)
        rounded = model.get_parameter(name).grad
        assert is_on_grid(rounded, precision)
        assert (rounded - gradients[name]).abs().max() <= precision.step
        assert not torch.equal(rounded, gradients[name])


@pytest.mark.parametrize(("execution", "longest"), [("bfloat16", 8), ("float16", 11)])
def test_products_run_short_as_long_as_the_word_fits(execution, longest):
    model, optimizer, controller = assembled(policy=SWIFT, execution=execution)
    types = []
    model[2].register_forward_pre_hook(lambda module, args: types.append(args[0].dtype))
    for step in range(4 * EPOCH):
        word_length = min((p.word_length for p in controller.precisions.values() if p is not None), default=32)
        types.clear()
        train(model, optimizer, 1, step, controller)
        assert types == [getattr(torch, execution) if word_length <= longest else torch.float32]


def test_values_beyond_float16_run_in_float32():
    model = net()
    with torch.no_grad():
        model[0].weight.mul_(2.0**18)
    types = []
    model, _, _ = assembled(model, adapt.MuPPET(steps_per_epoch=50), execution="float16")
    model[1].register_forward_pre_hook(lambda module, args: types.append(args[0].dtype))
    model(batch(0)[0])
    assert types == [torch.float32]


def test_the_performance_model_reads_its_trace():
    model, optimizer, controller = assembled(policy=SWIFT, rounding="nearest")
    train(model, optimizer, 4 * EPOCH - 1, controller=controller)
    operations = adapt.perfmodel.operations(model, batch(0)[0])
    running = adapt.perfmodel.RunningSummary(operations, batch_size=4)
    early = running.update(controller.trace)
    assert early.mean_word_length == 12
    train(model, optimizer, 1, controller=controller)
    final = running.update(controller.trace)
    assert final.mean_word_length == 32
    assert final.size_ratio == final.inference_speedup == pytest.approx(1)
    words = controller.trace.word_length[:, 0]
    assert final.run_mean_word_length == pytest.approx(words.mean())
    expected = adapt.perfmodel.training_speedup(
        operations, controller.trace.word_length, controller.trace.nonzero, batch_size=4
    )
    assert final.training_speedup == pytest.approx(expected), "MuPPET has no overhead in AdaPT's sense"
    assert final.training_speedup > 1


def test_the_length_of_an_epoch_must_be_given():
    model = net()
    before = copies(model.named_parameters())
    for attach in (
        lambda: adapt.attach(torch.optim.SGD(model.parameters(), lr=0.1), model, adapt.MuPPET()),
        lambda: adapt.ASGD(model, lr=0.1, policy=adapt.MuPPET()),
    ):
        with pytest.raises(ValueError, match=r"give steps_per_epoch=len\(loader\)"):
            attach()
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    adapt.ASGD(model, lr=0.1, policy=adapt.MuPPET(steps_per_epoch=4))


def test_a_policy_of_its_kind_may_take_its_place():
    model, optimizer, controller = assembled(policy=adapt.MuPPET(steps_per_epoch=1000))
    train(model, optimizer, 3, controller=controller)
    controller.policy = SWIFT
    assert controller.policy is SWIFT
    # Three steps are more than an epoch now has: the next ends it.
    train(model, optimizer, 1 + EPOCH, 3, controller)
    assert controller.trace.word_length[:, 0].tolist() == [8] * 5 + [12]
    for other in (adapt.AdaPT(), adapt.Fixed(adapt.Precision(8, 4)), None):
        with pytest.raises(TypeError, match="policy must be of the same kind as MuPPET"):
            controller.policy = other
    model, _, controller = assembled()
    with pytest.raises(TypeError, match="policy must be of the same kind as AdaPT"):
        controller.policy = adapt.AdaPT(push_up="diversity")


def test_a_convolutional_network_in_channels_last():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    model = model.to(memory_format=torch.channels_last)
    optimizer = adapt.ASGD(model, lr=0.05, momentum=0.9, policy=SWIFT, activations="range", quantize_errors=True)
    witness = Witness(model, optimizer.controller)
    generator = torch.Generator().manual_seed(0)
    for _ in range(4 * EPOCH + 1):
        optimizer.zero_grad()
        inputs = torch.randn(4, 3, 6, 6, generator=generator).to(memory_format=torch.channels_last)
        nn.functional.cross_entropy(model(inputs), torch.randint(3, (4,), generator=generator)).backward()
        optimizer.step()
    witness.check(4 * EPOCH)
    assert optimizer.controller.trace.word_length[:, 0].tolist() == [8] * 3 + [12] * 4 + [32] * 2
