"""Inputs, outputs and errors of the layers: on the grid, straight through, and the same again after a resume."""

import copy
import gc
import pickle
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

import adapt
from adapt import Precision
from adapt.activations.activations import CHECK
from adapt.activations.clipping import HYSTERESIS, LONGEST_CLIPPED, OCTAVES
from adapt.kernels import set_backend
from adapt.switching.policy import State
from tests.references import activations as reference
from tests.training import RESTLESS, Conv1D, assembled, is_on_grid, net, through_a_file, train

EIGHT_FOUR = adapt.Fixed(Precision(8, 4))
SHORT = adapt.Fixed(Precision(4, 2))


class Flows:
    """Records what goes into and comes out of the layers, as any later hook sees it."""

    def __init__(self, model):
        self.seen = []
        for name, module in model.named_modules():
            if "weight" in module._parameters and not isinstance(module, nn.BatchNorm2d):
                module.register_forward_hook(lambda _, args, output, name=name: self.record(name, args, output))

    def record(self, name, args, output):
        prefix = f"{name}.weight" if name else "weight"
        self.seen += [(f"{prefix}.input", args[0]), (f"{prefix}.output", output)]

    def check(self, controller):
        formats, judged = controller.activation_precisions, 0
        for name, tensor in self.seen:
            if tensor.is_floating_point():
                assert is_on_grid(tensor, formats[name]), f"{name} off {formats[name]}"
                judged += 1
        self.seen.clear()
        return judged


LAYERS = {
    "linear": (lambda: nn.Linear(6, 5), (4, 6)),
    "linear of sequences": (lambda: nn.Linear(6, 5), (4, 3, 6)),
    "linear without a bias": (lambda: nn.Linear(6, 5, bias=False), (6,)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3), (2, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, padding=1), (2, 4, 7, 7)),
    "conv2d of one picture": (lambda: nn.Conv2d(4, 6, 3), (4, 7, 7)),
    "grouped": (lambda: nn.Conv2d(4, 8, 3, groups=4), (2, 4, 7, 7)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2), (2, 2, 4, 4, 4)),
    "transposed1d": (lambda: nn.ConvTranspose1d(4, 2, 3), (2, 4, 5)),
    "transposed2d": (lambda: nn.ConvTranspose2d(4, 2, 3, stride=2), (2, 4, 5, 5)),
    "transposed3d": (lambda: nn.ConvTranspose3d(2, 2, 2), (1, 2, 3, 3, 3)),
    "transformers' Conv1D": (lambda: Conv1D(5, 6), (4, 3, 6)),
}


@pytest.mark.covering(2)
@pytest.mark.parametrize("errors", [False, True])
@pytest.mark.parametrize("mode", ["layer", "range"])
@pytest.mark.parametrize("layer", LAYERS)
def test_what_flows_is_on_the_grid(layer, mode, errors):
    torch.manual_seed(0)
    make, shape = LAYERS[layer]
    model, optimizer, controller = assembled(make(), EIGHT_FOUR, activations=mode, quantize_errors=errors)
    flows = Flows(model)
    for step in range(4):
        optimizer.zero_grad()
        x = (torch.randn(shape) * 4).requires_grad_()
        output = model(x)
        output.square().mean().backward()
        assert is_on_grid(output, controller.activation_precisions["weight.output"])
        assert x.grad.isfinite().all()
        assert flows.check(controller) == 2
        model.eval()
        model(x)
        assert flows.check(controller) == 2, step
        model.train()
        optimizer.step()


@pytest.mark.parametrize("mode", ["layer", "range"])
def test_embeddings_take_integers_and_round_their_output(mode):
    torch.manual_seed(0)
    bag = nn.EmbeddingBag(10, 4)
    model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 3))
    for part, x in ((model, torch.randint(10, (5, 3))), (bag, torch.randint(10, (5, 3)))):
        _, optimizer, controller = assembled(part, EIGHT_FOUR, activations=mode)
        flows = Flows(part)
        for _ in range(3):
            part(x).square().sum().backward()
            assert flows.check(controller) == (3 if part is model else 1)
            optimizer.step()
        assert not any(name.startswith("0.weight.input") for name in controller.activation_precisions)


def test_of_recurrent_layers_and_attention_only_the_weights_are_quantised():
    torch.manual_seed(0)
    gru, attention = nn.GRU(4, 5, batch_first=True), nn.MultiheadAttention(4, 2, batch_first=True)
    model = nn.ModuleDict({"gru": gru, "attention": attention, "head": nn.Linear(5, 2)})
    with pytest.warns(UserWarning, match="activations of gru, attention stay float32"):
        _, _, controller = assembled(model, EIGHT_FOUR, activations="layer")
    assert sorted(controller.activation_precisions) == [
        "attention.out_proj.weight.input",
        "attention.out_proj.weight.output",
        "head.weight.input",
        "head.weight.output",
    ]
    output, _ = gru(attention(*[torch.randn(2, 3, 4)] * 3)[0])
    assert not is_on_grid(output, Precision(8, 4))
    assert is_on_grid(model["head"](output), Precision(8, 4))


class Experts(nn.Module):
    """Two linear layers for each expert, each held as one parameter, as mixtures of experts do."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(2, 3, 4)), nn.Parameter(torch.randn(2, 4, 3))


def test_modules_whose_activations_cannot_be_reached_are_named_once():
    parts = {
        "experts": Experts(),
        "normed": nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)),
        "head": nn.Linear(3, 2),
        "words": nn.Embedding(4, 3),
        "frozen": nn.GRU(3, 3).requires_grad_(False),
    }
    model = nn.ModuleDict(parts)
    with pytest.warns(UserWarning, match="activations of") as caught:
        assembled(model, EIGHT_FOUR, activations=8)
    (warning,) = caught
    assert str(warning.message) == (
        "activations of experts, normed stay float32, because what these modules compute inside cannot be reached: "
        "only their weights are quantised"
    )
    many = nn.Sequential(*[nn.GRU(2, 2) for _ in range(7)], nn.Linear(2, 2))
    with pytest.warns(UserWarning, match=r"activations of 0, 1, 2, 3, 4 and 2 more stay float32"):
        assembled(many, EIGHT_FOUR, activations=8)


def test_layers_that_join_later_bring_no_second_warning(recwarn):
    model = nn.ModuleDict({"gru": nn.GRU(3, 3), "head": nn.Linear(3, 2), "last": nn.Linear(2, 2)})
    model["last"].weight.requires_grad_(False)
    assembled(model, EIGHT_FOUR, activations="layer")
    model["last"].weight.requires_grad_(True)
    model["last"](model["head"](torch.ones(2, 3)))
    assert len([w for w in recwarn if "stay float32" in str(w.message)]) == 1


def test_layers_that_join_in_the_call_of_a_layer_leave_its_input_on_the_grid():
    parts = nn.ModuleDict({"head": nn.Linear(3, 2), "last": nn.Linear(2, 2)})
    parts["last"].weight.requires_grad_(False)
    _, _, controller = assembled(parts, EIGHT_FOUR, activations="layer")
    parts["last"].weight.requires_grad_(True)
    flows = Flows(parts)
    parts["head"](torch.rand(2, 3))
    parts["head"](torch.rand(2, 3))
    assert "last.weight.input" in controller.activation_precisions
    assert is_on_grid(flows.seen[-1][1], Precision(8, 4))


def straight_through_twin(weight, bias, x, outer, precision):
    """Output, gradient of x, of the weight and of the bias of one linear layer with activations rounded to nearest."""
    x_rounded = adapt.quantize(x, precision)
    y = x_rounded @ weight.T + bias
    error = reference.straight_through(y, outer, precision)
    return (
        adapt.quantize(y, precision),
        reference.straight_through(x, error @ weight, precision),
        error.T @ x_rounded,
        error.sum(0),
    )


def test_the_gradient_goes_straight_through_inside_the_range_alone():
    torch.manual_seed(0)
    model, _, controller = assembled(nn.Linear(6, 5), SHORT, rounding="nearest", activations="layer")
    x = (torch.randn(64, 6) * 2).requires_grad_()
    with torch.no_grad():
        x[0] = torch.tensor([1.75, -2.0, 1.7500001, -2.0000002, 1.9, 0.0])
    outer = torch.randn(64, 5)
    y = model(x)
    y.backward(outer)
    weight = adapt.quantize(controller.masters["weight"], Precision(4, 2))
    expected = straight_through_twin(weight, model.bias.detach(), x.detach(), outer, Precision(4, 2))
    for actual, wanted in zip((y, x.grad, model.weight.grad, model.bias.grad), expected, strict=True):
        torch.testing.assert_close(actual.detach(), wanted, rtol=1e-6, atol=1e-6)
    assert torch.equal(x.grad[0] == 0, torch.tensor([False, False, True, True, True, False]))
    assert (y.detach().abs() >= 1.75).any(), "no output saturates: the test shows nothing"


def test_training_is_unbiased_and_evaluation_is_nearest():
    model, _, _ = assembled(nn.Linear(1, 1), EIGHT_FOUR, activations="layer")
    seen = []
    model.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x = torch.full((200_000, 1), 0.3)  # 4.8 steps of 1/16
    model(x)
    share_up = (seen[0] == 5 / 16).double().mean().item()
    assert set(seen[0].unique().tolist()) == {4 / 16, 5 / 16}
    assert abs(share_up - 0.8) < 0.0045, "5 standard deviations: fails once in 1.7 million seeds"
    model.eval()
    model(x)
    assert (seen[1] == 5 / 16).all()


def test_nearest_rounding_in_training_draws_nothing():
    model, _, _ = assembled(nn.Linear(1, 1), EIGHT_FOUR, rounding="nearest", activations="layer")
    seen = []
    model.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(torch.full((1000, 1), 0.3))
    assert (seen[0] == 5 / 16).all()


def test_passes_of_one_step_draw_different_noise_and_evaluation_draws_none():
    inputs = torch.rand(64, 6)
    outputs = []
    for evaluate in (False, True):
        model, optimizer, _ = assembled(activations="layer")
        first = model(inputs)
        if evaluate:
            model.eval()
            model(inputs)
            model.train()
        second = model(inputs)
        optimizer.step()
        outputs.append((first, second, model(inputs)))
        assert not torch.equal(first, second)
        assert not torch.equal(first, outputs[-1][2])
    for a, b in zip(*outputs, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("policy", "word"), [(EIGHT_FOUR, 8), (SHORT, 4), (adapt.Fixed(Precision(2, 0)), 2)])
def test_the_fraction_follows_the_range(policy, word):
    torch.manual_seed(0)
    model, optimizer, controller = assembled(
        nn.Linear(6, 5), policy, rounding="nearest", activations="range", quantize_errors=True
    )
    ranges = dict.fromkeys(controller.activation_precisions, 0.0)
    shifts, met = dict.fromkeys(ranges, 0), set()
    own = policy.precision
    assert controller.activation_precisions == {"weight.input": own, "weight.output": own, "weight.error": None}
    for step, scale in enumerate((1.0, 100.0, *[0.01] * CHECK, *[1.0] * CHECK)):
        x, outer = torch.randn(32, 6) * scale, torch.randn(32, 5) * scale * 1e-3
        rounded = adapt.quantize(x, controller.activation_precisions["weight.input"])
        y = F.linear(rounded, model.weight, model.bias).detach()
        optimizer.zero_grad()
        model(x).backward(outer)
        optimizer.step()
        for name, tensor in (("weight.input", x), ("weight.output", y), ("weight.error", outer)):
            ranges[name] = reference.next_range(ranges[name], reference.largest_finite(tensor))
            fraction = reference.fitting_fraction_length(ranges[name], word)
            judged = step < CHECK or step % CHECK == 0
            if judged and word <= LONGEST_CLIPPED and name != "weight.error":
                errors = reference.clipping_errors(tensor.flatten().tolist(), word, fraction, OCTAVES)
                shifts[name] = reference.chosen_shift(errors, shifts[name], HYSTERESIS)
                met.add(shifts[name])
            assert controller.activation_precisions[name] == Precision(word, fraction + shifts[name])
    # A longer word holds every value.
    assert len(met) > 1 or word > LONGEST_CLIPPED, "no shift ever changed: the test shows nothing"


def mean_squared_error(x, precision):
    return float((adapt.quantize(x, precision) - x).square().mean())


def test_few_bits_are_spent_on_common_values_and_large_errors_are_kept():
    torch.manual_seed(0)
    heavy, even = torch.distributions.StudentT(3.0).sample((300, 6)), torch.rand(300, 6) * 1.8 - 0.9
    for x, clips in ((heavy, True), (even, False)):
        model, optimizer, controller = assembled(
            nn.Linear(6, 6), EIGHT_FOUR, rounding="nearest", activations=4, quantize_errors=True
        )
        model(x).backward(heavy)
        optimizer.step()
        chosen = controller.activation_precisions
        whole = Precision(4, reference.fitting_fraction_length(reference.largest_finite(x), 4))
        assert (chosen["weight.input"] != whole) == clips
        assert (mean_squared_error(x, chosen["weight.input"]) < mean_squared_error(x, whole) / 2) == clips
        largest = reference.fitting_fraction_length(reference.largest_finite(heavy), 4)
        assert chosen["weight.error"] == Precision(4, largest)


def test_a_word_length_of_their_own_for_all_activations():
    model, optimizer, controller = assembled(
        nn.Linear(6, 5), SHORT, rounding="nearest", activations=8, quantize_errors=True
    )
    assert set(controller.activation_precisions.values()) == {None}
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        seen = model(x)
        optimizer.zero_grad()
        seen.square().mean().backward()
        optimizer.step()
    assert controller.precisions == {"weight": SHORT.precision}
    forms = controller.activation_precisions
    assert {form.word_length for form in forms.values()} == {8}
    largest = reference.largest_finite(x)
    assert forms["weight.input"] == Precision(8, reference.fitting_fraction_length(largest, 8))
    expected = F.linear(adapt.quantize(x, forms["weight.input"]), model.weight, model.bias)
    assert torch.equal(model(x), adapt.quantize(expected, forms["weight.output"]))


def test_evaluation_does_not_move_a_range():
    model, optimizer, controller = assembled(nn.Linear(6, 5), EIGHT_FOUR, activations="range")
    model(torch.ones(2, 6)).sum().backward()
    model.eval()
    model(torch.full((2, 6), 1000.0))
    optimizer.step()
    assert controller.activation_precisions["weight.input"].maximum < 2


def test_what_is_not_finite_does_not_move_a_range():
    model, optimizer, controller = assembled(nn.Linear(2, 2), EIGHT_FOUR, activations="range")
    model(torch.tensor([[1.0, float("inf")], [float("nan"), 0.5]]))
    optimizer.step()
    assert controller.activation_precisions["weight.input"] == Precision(8, 6)


def test_errors_reach_the_layer_on_their_grid():
    model, optimizer, controller = assembled(nn.Linear(6, 5), EIGHT_FOUR, activations="layer", quantize_errors=True)
    outer = torch.randn(1, 5, generator=torch.Generator().manual_seed(0)) * 1e-3
    for step in range(3):
        optimizer.zero_grad()
        model(torch.ones(1, 6)).backward(outer)
        form = controller.activation_precisions["weight.error"]
        # With one sample the gradient of the bias is the error itself.
        if step == 0:
            assert form is None
            assert torch.equal(model.bias.grad, outer[0])
        else:
            assert is_on_grid(model.bias.grad, form)
            assert (model.bias.grad - outer[0]).abs().max() <= form.step
        optimizer.step()


def test_errors_stay_as_they_are_in_evaluation_mode():
    model, optimizer, controller = assembled(nn.Linear(6, 5), EIGHT_FOUR, activations="layer", quantize_errors=True)
    model(torch.ones(1, 6)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    model.eval()
    outer = torch.rand(1, 5) * 1e-3
    model(torch.ones(1, 6)).backward(outer)
    assert torch.equal(model.bias.grad, outer[0])
    assert controller.activation_precisions["weight.error"] is not None


def test_contexts_pin_the_activations_too():
    model, _, controller = assembled(activations="layer")
    inputs = torch.rand(64, 6)
    with controller.evaluation_weights():
        one, two = model(inputs), model(inputs)
    assert torch.equal(one, two)
    with controller.master_weights():
        plain = model(inputs)
    masters = controller.masters
    expected = torch.tanh(F.linear(inputs, masters["0.weight"], model[0].bias))
    assert torch.equal(plain, F.linear(expected, masters["2.weight"], model[2].bias))
    assert not torch.equal(model(inputs), model(inputs))


def test_copies_and_detached_models_are_plain():
    model, _, controller = assembled(activations="range", quantize_errors=True)
    inputs = torch.rand(4, 6)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        plain = net()
        plain.load_state_dict(other.state_dict())
        other.load_state_dict(plain.state_dict())
        assert torch.equal(other(inputs), plain(inputs))
    controller.detach()
    plain = net()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model(inputs), plain(inputs))
    assert not any(module._forward_hooks for module in model)


def test_hooks_go_with_the_controller():
    model, optimizer, controller = assembled(activations="layer")
    del optimizer, controller
    gc.collect()
    plain, inputs = net(), torch.rand(4, 6)
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model(inputs), plain(inputs))


@pytest.mark.parametrize("errors", [False, True])
def test_channels_last_stays(errors):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.Conv2d(8, 4, 3))
    model = model.to(memory_format=torch.channels_last)
    _, optimizer, _ = assembled(model, EIGHT_FOUR, activations="layer", quantize_errors=errors)
    x = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last).requires_grad_()
    for _ in range(2):
        output = model(x)
        assert output.is_contiguous(memory_format=torch.channels_last)
        output.sum().backward()
        optimizer.step()
    assert x.grad.is_contiguous(memory_format=torch.channels_last)


def test_gradients_of_another_layout_meet_the_right_mask():
    torch.manual_seed(0)
    grads = []
    for format in (torch.contiguous_format, torch.channels_last):
        model, _, _ = assembled(nn.Conv2d(3, 4, 1, bias=False), SHORT, rounding="nearest", activations="layer")
        with torch.no_grad():
            model.weight.fill_(1.0)
        x = torch.arange(2 * 3 * 5 * 5).reshape(2, 3, 5, 5).remainder(7).float().sub_(3)
        x = x.to(memory_format=torch.channels_last).requires_grad_()
        outer = torch.arange(2 * 4 * 5 * 5).reshape(2, 4, 5, 5).float().to(memory_format=format)
        model(x).backward(outer)
        grads.append(x.grad.contiguous())
        assert (x.grad == 0).any()
        assert (x.grad != 0).any()
    assert torch.equal(*grads)


def test_inputs_by_name_with_gaps_and_without_elements():
    model, _, _ = assembled(nn.Linear(4, 3), EIGHT_FOUR, activations="layer")
    flows = []
    model.register_forward_hook(lambda _, args, kwargs, output: flows.append(kwargs["input"]), with_kwargs=True)
    wide = torch.randn(5, 8, requires_grad=True)
    model(input=wide[:, ::2]).sum().backward()
    assert is_on_grid(flows[0], Precision(8, 4))
    assert (wide.grad[:, 1::2] == 0).all()
    assert model(input=torch.empty(0, 4)).shape == (0, 3)
    assert model(input=torch.ones(1, 4).expand(6, 4)).shape == (6, 3)


def test_the_caller_keeps_its_input_and_other_hooks_see_rounded_values():
    model, _, _ = assembled(nn.Linear(4, 3), EIGHT_FOUR, activations="layer", quantize_errors=True)
    penalties = []
    model.register_forward_hook(lambda _, args, output: penalties.append(output.square().sum()))
    x = torch.randn(5, 4)
    before = x.clone()
    (model(x).sum() + penalties[0]).backward()
    assert torch.equal(x, before)


def test_layers_without_autograd_and_with_views():
    model = nn.Sequential(nn.Conv1d(2, 2, 1), nn.ReLU(inplace=True))
    assembled(model, EIGHT_FOUR, activations="layer", quantize_errors=True)
    model(torch.randn(1, 2, 4)).sum().backward()
    with torch.no_grad():
        assert is_on_grid(model(torch.randn(1, 2, 4)), Precision(8, 4))
    with torch.inference_mode():
        assert is_on_grid(model(torch.randn(1, 2, 4)), Precision(8, 4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_under_autocast(dtype):
    torch.manual_seed(0)
    model, optimizer, controller = assembled(activations="range", quantize_errors=True, policy=EIGHT_FOUR)
    flows = Flows(model)
    for _ in range(3):
        with torch.autocast("cpu", dtype):
            output = model(torch.randn(8, 6))
        assert output.dtype == dtype
        output.float().square().mean().backward()
        assert flows.check(controller) == 4
        optimizer.step()


def shared_sites(controller):
    return {name: form for name, form in controller.activation_precisions.items() if form is not None}


@pytest.mark.parametrize("mode", ["layer", "range", 6, 3])
def test_a_resumed_run_is_the_same_run(mode):
    options = {"activations": mode, "quantize_errors": True}
    straight, optimizer, controller = assembled(**options)
    train(straight, optimizer, 2 * CHECK + 1, controller=controller)
    first, optimizer_one, controller_one = assembled(**options)
    train(first, optimizer_one, 4, controller=controller_one)
    saved = through_a_file({"model": first.state_dict(), "optimizer": optimizer_one.state_dict()})
    second, optimizer_two, controller_two = assembled(net(seed=9), **options)
    second.load_state_dict(saved["model"])
    optimizer_two.load_state_dict(saved["optimizer"])
    train(second, optimizer_two, 2 * CHECK - 3, first=4, controller=controller_two)
    for name, master in controller.masters.items():
        assert torch.equal(master, controller_two.masters[name])
    assert controller.activation_precisions == controller_two.activation_precisions
    assert torch.equal(straight(torch.ones(3, 6)), second(torch.ones(3, 6)))


def test_a_resume_between_micro_batches_goes_on_in_the_stream():
    inputs = torch.rand(16, 6, generator=torch.Generator().manual_seed(1))
    options = {"activations": "range", "quantize_errors": True}
    model, optimizer, controller = assembled(**options)
    for half in range(2):
        loss = model(inputs).square().mean()
        loss.backward()
        controller.observe(loss)
        if half == 0:
            state = copy.deepcopy(optimizer.state_dict())
    other, other_optimizer, other_controller = assembled(net(seed=9), **options)
    other.load_state_dict(net().state_dict())
    other_optimizer.load_state_dict(state)
    assert torch.equal(other(inputs).square().mean(), loss)
    optimizer.step()
    other_optimizer.step()
    assert shared_sites(controller).keys() == shared_sites(other_controller).keys()


def test_a_resume_between_the_last_pass_and_the_step_keeps_the_sample():
    inputs = torch.distributions.StudentT(2.0).sample((300, 6))
    formats = []
    for resumes in (False, True):
        model, optimizer, controller = assembled(policy=EIGHT_FOUR, activations=3)
        model(inputs).square().mean().backward()
        if resumes:
            state = through_a_file(optimizer.state_dict())
            assert state["adapt"]["activations"]["samples"].any()
            _, optimizer, controller = assembled(net(seed=9), EIGHT_FOUR, activations=3)
            optimizer.load_state_dict(state)
            assert "samples" in optimizer.state_dict()["adapt"]["activations"]
        optimizer.step()
        assert "samples" not in optimizer.state_dict()["adapt"]["activations"]
        formats.append(controller.activation_precisions)
    assert formats[0] == formats[1]


def test_a_state_without_shifts_starts_with_whole_ranges():
    inputs = torch.distributions.StudentT(2.0).sample((300, 6))
    model, optimizer, controller = assembled(policy=EIGHT_FOUR, activations=3)
    model(inputs).square().mean().backward()
    optimizer.step()
    clipped = controller.activation_precisions["0.weight.input"]
    state = optimizer.state_dict()
    del state["adapt"]["activations"]["shifts"]
    optimizer.load_state_dict(state)
    whole = Precision(3, reference.fitting_fraction_length(reference.largest_finite(inputs), 3))
    assert controller.activation_precisions["0.weight.input"] == whole
    assert clipped.fraction_length > whole.fraction_length


def test_a_state_of_other_sites_is_refused():
    _, optimizer, _ = assembled(activations="layer")
    _, plain, _ = assembled()
    with pytest.raises(ValueError, match="rounds activations at 0 places, but this controller at 4"):
        optimizer.load_state_dict(plain.state_dict())
    _, with_errors, controller = assembled(activations="layer", quantize_errors=True)
    with pytest.raises(ValueError, match="at 4 places, but this controller at 6"):
        with_errors.load_state_dict(optimizer.state_dict())
    state = with_errors.state_dict()
    state["adapt"]["activations"]["ranges"] = torch.zeros(2)
    with pytest.raises(ValueError, match="'ranges'"):
        with_errors.load_state_dict(state)
    for field, broken, message in (
        ("shifts", torch.full((6,), OCTAVES + 1), "'shifts' from 0 to 6"),
        ("shifts", torch.zeros(5), r"'shifts' as \[6\]"),
        ("samples", torch.zeros(6), r"'samples' as \[6, 2048\]"),
    ):
        state = with_errors.state_dict()
        state["adapt"]["activations"][field] = broken
        with pytest.raises(ValueError, match=message):
            with_errors.load_state_dict(state)
    controller.load_state_dict(optimizer.state_dict()["adapt"], strict=False)


def test_layers_that_join_later_are_rounded_and_the_others_keep_their_ranges():
    model = net()
    model[2].weight.requires_grad_(False)
    _, optimizer, controller = assembled(model, EIGHT_FOUR, activations="range")
    model(torch.full((2, 6), 50.0)).sum().backward()
    optimizer.step()
    before = controller.activation_precisions
    assert set(before) == {"0.weight.input", "0.weight.output"}
    model[2].weight.requires_grad_(True)
    model(torch.ones(2, 6))
    after = controller.activation_precisions
    assert {name: after[name] for name in before} == before
    assert set(after) == {*before, "2.weight.input", "2.weight.output"}


def test_a_tied_weight_has_sites_by_both_paths():
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7, bias=False))
    model[1].weight = model[0].weight
    _, _, controller = assembled(model, EIGHT_FOUR, activations="layer")
    assert list(controller.activation_precisions) == ["0.weight.output", "1.weight.input", "1.weight.output"]
    model(torch.arange(7)).sum().backward()


@dataclass(frozen=True)
class Leaving(adapt.Fixed):
    """Fixed point for so many gradients, then float32."""

    after: int = 0

    def start(self, weights):
        return self.advance(super().start(weights), None)

    def patience(self, state):
        return 0

    def advance(self, state, observation):
        formats = tuple(None if count >= self.after else self.precision for count in state.gradients)
        return State(formats, state.gradients + 1)


def test_float32_layers_flow_freely():
    policy = Leaving(Precision(8, 4))
    model, optimizer, controller = assembled(net(), policy, activations="layer", quantize_errors=True)
    plain, inputs = net(), torch.rand(4, 6)
    assert torch.equal(model(inputs), plain(inputs))
    model(inputs).sum().backward()
    optimizer.step()
    assert set(controller.activation_precisions.values()) == {None}


def run(compiler=None, *, mode="range", policy=RESTLESS, steps=CHECK + 2):
    """Losses and formats of a short run, and how many graphs were compiled."""
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    model, optimizer, controller = assembled(activations=mode, quantize_errors=True, policy=policy)
    counter = CompileCounterWithBackend(compiler)
    forward = model if compiler is None else torch.compile(model, backend=counter)
    losses, formats = [], []
    for step in range(steps):
        optimizer.zero_grad()
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step)) * 2 ** (step % 4)
        loss = forward(x).square().mean()
        loss.backward()
        controller.observe(loss)
        optimizer.step()
        losses.append(loss.item())
        formats.append(controller.activation_precisions)
    return losses, formats, counter.frame_count


@pytest.mark.covering(1)
@pytest.mark.parametrize("mode", ["layer", "range", 3])
@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_compiled_models_compile_once_and_compute_the_same(compiler, mode):
    losses, formats, _ = run(mode=mode)
    compiled_losses, compiled_formats, frames = run(compiler, mode=mode)
    assert frames == 1
    assert len({str(form) for form in formats}) > 2, "no precision moved: the test shows nothing"
    assert compiled_losses == losses
    assert compiled_formats == formats


def test_a_layer_that_leaves_fixed_point_recompiles_nothing():
    losses, formats, frames = run("eager", policy=Leaving(Precision(8, 4), after=3))
    assert frames == 1
    assert None not in formats[0].values()
    assert set(formats[-1].values()) == {None}
    assert losses == run(policy=Leaving(Precision(8, 4), after=3))[0]


def test_back_ends_train_alike():
    results = []
    for name in ("torch", "numba"):
        set_backend(name)
        results.append(run(mode=3)[:2])
    set_backend(None)
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activations": "both"}, 'None, "layer", "range" or a word length of 2 to 32 bits, got \'both\''),
        ({"activations": 1}, "word length of 2 to 32 bits, got 1"),
        ({"activations": True}, "word length of 2 to 32 bits, got True"),
        ({"quantize_errors": True}, "quantize_errors=True needs activations"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        assembled(**options)


def test_activations_need_a_module_with_layers_that_can_round_them():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="activations are quantised by hooks"):
        adapt.attach(optimizer, dict(model.named_parameters()), activations="layer")
    recurrent = nn.LSTM(3, 4)
    optimizer = torch.optim.SGD(recurrent.parameters(), lr=0.1)
    before = recurrent.weight_hh_l0.detach().clone()
    with pytest.raises(ValueError, match="no linear layer, convolution or embedding"):
        adapt.attach(optimizer, recurrent, activations="layer")
    assert torch.equal(recurrent.weight_hh_l0, before)
    adapt.attach(optimizer, recurrent)


@pytest.mark.parametrize("errors", [False, True])
def test_a_penalty_on_gradients_reaches_the_weights(errors):
    """With create_graph the gradient of the input is differentiated: the mask is a factor, rounding lets through."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    narrow = adapt.Fixed(Precision(8, 6))
    adapt.attach(optimizer, model, narrow, rounding="nearest", activations="layer", quantize_errors=errors)
    x = (3 * torch.randn(16, 6)).requires_grad_()
    y = model(x)
    (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    assert (slope == 0).any(), "no input saturated: the test shows nothing"
    (found,) = torch.autograd.grad(slope.square().sum(), model[0].weight)
    inside = (x >= -2) & (x <= 2 - 2**-6)
    low = adapt.quantize(x, Precision(8, 6))
    hidden = F.linear(low, model[0].weight, model[0].bias)
    kept = (hidden >= -2) & (hidden <= 2 - 2**-6)
    rounded = hidden + (adapt.quantize(hidden, Precision(8, 6)) - hidden).detach()
    curve = torch.tanh(rounded)
    curve = curve + (adapt.quantize(curve, Precision(8, 6)) - curve).detach()
    derivative = (1 - torch.tanh(rounded) ** 2) * model[2].weight[0] * kept
    (expected,) = torch.autograd.grad(((derivative @ model[0].weight) * inside).square().sum(), model[0].weight)
    assert (found - expected).norm() < 1e-4 * expected.norm()


def test_transforms_of_torch_func_are_refused_by_name():
    model, _, _ = assembled(activations="range")
    with pytest.raises(NotImplementedError, match=r"transforms of torch\.func and make_fx cannot trace the rounding"):
        torch.func.vmap(model)(torch.randn(2, 4, 6))


def test_an_input_without_values_is_the_layers_matter():
    model, _, _ = assembled(activations="range")
    with pytest.raises(RuntimeError, match="device"):
        model(torch.randn(4, 6, device="meta"))
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(RuntimeError):
        model(torch.randn(4, 6))
