"""The phases of a run: what moves when, what the budgets get, what is reported, and what is refused."""

import contextlib
import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

import adapt
from adapt.learned import Budget, Phases, attach, attach_lsq
from adapt.learned.phases import rate
from adapt.perfmodel import network_size
from tests.learned.networks import PHASES, Convolutional, build, given, learning, on_grid, pictures, train


def bits(learner):
    """The word length of every format."""
    return np.concatenate([np.atleast_1d(form.word_length) for form in learner.formats.values()])


def budgets(learner, budget):
    """The budget in kB of weights and activations, at so many bits."""
    size = learner.size
    return size.weight_kilobytes / size.weight_bits * budget, size.activation_kilobytes / size.activation_bits * budget


def test_pretraining_is_homogeneous_two_bits_above_the_budget():
    model, optimizer, learner = learning(bits=3.6)
    assert learner.phase == "pretraining"
    assert (bits(learner) == 5).all()
    before = learner.formats["first.weight"].step
    train(model, optimizer, PHASES.pretraining)
    assert (bits(learner) == 5).all()
    # The steps themselves are learned.
    assert not np.array_equal(learner.formats["first.weight"].step, before)
    assert learner.phase == "learning"


def test_widths_move_in_learning_every_so_many_steps():
    model, optimizer, learner = learning()
    train(model, optimizer, PHASES.pretraining)
    moved = []
    for step in range(6, 24):
        before = bits(learner)
        train(model, optimizer, 1, first=step)
        moved.append(not np.array_equal(bits(learner), before))
    assert any(moved)
    assert not any(m for i, m in enumerate(moved, 1) if i % 3)


def test_budgets_are_met_within_one_per_cent_and_what_learning_missed_is_told():
    model, optimizer, learner = learning()
    train(model, optimizer, PHASES.pretraining + PHASES.learning)
    sizes = learner.size
    for kilobytes, entry in ((sizes.weight_kilobytes, "weight"), (sizes.activation_kilobytes, "activation")):
        target = learner.log[1][f"{entry}_budget"]
        assert target * 0.9 < kilobytes <= target * 1.01
        assert math.isfinite(learner.log[1][f"{entry}_missed_by"])
    assert [entry["phase"] for entry in learner.log] == ["pretraining", "learning"]
    assert learner.log[0]["moved"] == 0
    assert learner.log[1]["moved"] > 0.5
    assert learner.log[1]["bit_change"] > 0.5
    assert learner.log[1]["gradient"] > 0


def test_sizes_are_the_performance_models():
    _, _, learner = learning(bits=3)
    weights = [
        (n // f.word_length.size, f)
        for n, f in ((learner.masters[name].numel(), form) for name, form in learner.precisions.items())
    ]
    numel = np.concatenate([np.full(f.word_length.size, n) for n, f in weights])
    widths = np.concatenate([f.word_length.flatten() for _, f in weights])
    sizes = {"first": 3 * 64, "depthwise": 8 * 64, "grouped": 8 * 64, "up": 8 * 64, "head": 6}
    inputs = [learner.activation_precisions[f"{name}.input"].word_length.item() for name in sizes]
    expected = network_size(numel, widths, list(sizes.values()), inputs)
    assert learner.size.kilobytes == pytest.approx(expected)
    assert learner.size.weight_bits == 5


def test_formats_are_frozen_in_fine_tuning_while_weights_move():
    model, optimizer, learner = learning()
    train(model, optimizer, PHASES.pretraining + PHASES.learning)
    before, master = learner.formats, learner.masters["first.weight"].clone()
    train(model, optimizer, PHASES.finetuning + 5, first=30)
    for name, form in learner.formats.items():
        for field in ("step", "maximum", "word_length"):
            assert np.array_equal(getattr(form, field), getattr(before[name], field)), name
    assert not torch.equal(learner.masters["first.weight"], master)
    assert learner.phase == "finetuning"


def test_batch_norm_statistics_of_fine_tuning_are_an_even_mean_that_begins_anew():
    model, optimizer, _learner = learning(activation_budget=None)
    train(model, optimizer, 30)
    means = []
    for step in range(30, 33):
        x = pictures(step)[0]
        with torch.no_grad():
            means.append(model.first(x).mean((0, 2, 3)))
        train(model, optimizer, 1, first=step)
        torch.testing.assert_close(model.norm.running_mean, torch.stack(means).mean(0), rtol=1e-4, atol=1e-5)
    assert model.norm.momentum == 0.1
    before = model.norm.running_mean.clone()
    with torch.no_grad():
        mean = model.first(pictures(33)[0]).mean((0, 2, 3))
    train(model, optimizer, 1, first=33)
    torch.testing.assert_close(model.norm.running_mean, 0.9 * before + 0.1 * mean, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:no bit width moved")
@pytest.mark.parametrize("finetuning", [0, 2])
def test_a_fine_tuning_shorter_than_the_even_mean_gives_the_momentum_back(finetuning):
    phases = Phases(1, 4, finetuning)
    model, optimizer, _learner = learning(phases=phases, update_every=3)
    train(model, optimizer, phases.total)
    assert model.norm.momentum == 0.1
    # Nothing is forgotten where no pass follows.
    assert model.norm.num_batches_tracked == (finetuning or 5)


def test_detaching_while_statistics_are_taken_gives_the_momentum_back():
    model, optimizer, learner = learning()
    train(model, optimizer, 31)
    assert model.norm.momentum is None
    learner.detach()
    assert model.norm.momentum == 0.1


def test_learning_rates_rise_and_fall_over_all_phases():
    model, optimizer, _learner = learning(warmup=0.5)
    found = []
    for step in range(PHASES.total + 2):
        train(model, optimizer, 1, first=step)
        found.append(optimizer.param_groups[0]["lr"])
    expected = [0.05 * rate(min(step, PHASES.total - 1), PHASES.total, 0.5) for step in range(PHASES.total + 2)]
    assert found == pytest.approx(expected)


def test_present_rates_are_the_peaks_whatever_an_earlier_schedule_left():
    def after(attach_to):
        model, optimizer = build()
        optimizer.param_groups[0].update(lr=0.002, initial_lr=0.7)
        attach_to(model, optimizer)
        train(model, optimizer, 1)
        return optimizer.param_groups[0]["lr"]

    assert after(lambda model, optimizer: learning(model, optimizer)) == pytest.approx(
        0.002 * rate(0, PHASES.total, 0.04)
    )
    lsq = after(lambda model, optimizer: attach_lsq(optimizer, model, weight_bits=3, steps=10))
    assert lsq == pytest.approx(0.002 * rate(0, 10, 0.04))


SCHEDULERS = {
    "one cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=20),
    "factor by factor": lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.8),
    "several": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [torch.optim.lr_scheduler.LinearLR(o, 0.1, total_iters=3), torch.optim.lr_scheduler.CosineAnnealingLR(o, 9)],
        [3],
    ),
}


@pytest.mark.covering(2)
@pytest.mark.parametrize("late", [False, True], ids=["before attaching", "after attaching"])
@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS)
@pytest.mark.parametrize("how", ["learned", "lsq"])
def test_a_scheduler_that_is_there_wins_and_one_warning_says_so(make, late, how):
    def rates(quantised):
        model, optimizer = build()
        scheduler = None if late else make(optimizer)
        with pytest.warns(UserWarning, match="scheduler") if quantised else contextlib.nullcontext() as caught:
            if quantised and how == "learned":
                learning(model, optimizer)
            elif quantised:
                attach_lsq(optimizer, model, weight_bits=4, steps=20)
            scheduler = scheduler or make(optimizer)
            used = []
            for step in range(10):
                train(model, optimizer, 1, first=step)
                used.append(optimizer.param_groups[0]["lr"])
                scheduler.step()
        told = [w for w in caught or () if "learning rates are left to you" in str(w.message)]
        assert len(told) == quantised
        return used

    assert rates(True) == rates(False)


@pytest.mark.parametrize("late", [False, True], ids=["before attaching", "after attaching"])
def test_a_scheduler_that_waits_for_a_plateau_wins_before_it_has_met_one(late, recwarn):
    model, optimizer = build()

    def make():
        return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=1)

    scheduler = None if late else make()
    attach_lsq(optimizer, model, weight_bits=4, steps=20)
    scheduler = scheduler or make()
    used = []
    for step in range(5):
        train(model, optimizer, 1, first=step)
        used.append(optimizer.param_groups[0]["lr"])
        scheduler.step(1.0)
    assert used == [0.05, 0.05, 0.05, 0.025, 0.025]
    assert len([one for one in recwarn if "learning rates are left to you" in str(one.message)]) == 1


@pytest.mark.parametrize("write", [lambda rate: 0.5 * rate, lambda rate: 0.03], ids=["halved", "set"])
def test_a_rate_that_is_written_by_hand_stays_also_in_a_resumed_run(write):
    model, optimizer, _ = learning()
    train(model, optimizer, 3)
    group = optimizer.param_groups[0]
    wanted = group["lr"] = write(group["lr"])
    with pytest.warns(UserWarning, match="a learning rate was changed between two steps, so .* left to you"):
        train(model, optimizer, 1, first=3)
    train(model, optimizer, 4, first=4)
    assert group["lr"] == wanted
    again, resumed, _ = learning()
    again.load_state_dict(model.state_dict())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    with pytest.warns(UserWarning, match="whose learning rates were left to its user"):
        train(again, resumed, 2, first=8)
    assert resumed.param_groups[0]["lr"] == wanted


def test_learning_rates_are_left_alone_without_schedule():
    model, optimizer, _learner = learning(schedule=False)
    train(model, optimizer, 8)
    assert optimizer.param_groups[0]["lr"] == 0.05


def test_a_maximum_of_activations_is_a_budget_too():
    model, optimizer, learner = learning(activation_size="max", activation_budget=Budget(kilobytes=0.2))
    train(model, optimizer, 30)
    assert learner.size.activation_kilobytes <= 0.2
    assert learner.log[1]["activation_budget"] == 0.2


def test_one_bit_is_reached_where_it_is_allowed():
    model, optimizer, learner = learning(bits=1.3, floor=1, activation_budget=None, quantize_biases=False)
    train(model, optimizer, PHASES.total)
    assert learner.size.weight_bits <= 1.3 * 1.01
    form, weight = learner.formats["grouped.weight"], model.grouped.weight.detach()
    assert 1 in np.concatenate([f.word_length.flatten() for f in learner.formats.values()])
    for c in np.flatnonzero(form.word_length == 1):
        torch.testing.assert_close(weight[c].abs(), torch.full_like(weight[c], float(form.maximum[c])))


def test_biases_are_quantised_unless_they_are_not():
    _, _, learner = learning()
    assert {"first.bias", "grouped.bias", "up.bias", "head.bias"} <= set(learner.formats)
    assert "norm.bias" not in learner.formats
    _, _, learner = learning(quantize_biases=False)
    assert not any(name.endswith("bias") for name in learner.formats)


def test_evaluation_and_training_see_the_same_grid():
    model, optimizer, learner = learning()
    train(model, optimizer, 3)
    weight = model.head.weight.detach().clone()
    model.eval()
    model(pictures(0)[0])
    assert torch.equal(model.head.weight, weight)
    step = torch.from_numpy(learner.steps["head.weight"])[:, None]
    assert on_grid(weight, step)


def test_trace_and_widths_tell_what_happened():
    model, optimizer, learner = learning()
    train(model, optimizer, PHASES.total)
    trace, widths = learner.trace, learner.widths
    assert trace.layers == tuple(learner.masters)
    assert trace.step[0] == 1
    assert trace.word_length[0].tolist() == [6] * len(trace.layers)
    last = learner.formats["first.weight"]
    assert widths.of("first.weight")[-1].tolist() == last.word_length.tolist()
    assert widths.of("head.weight.input")[0].tolist() == [6]
    i = trace.layers.index("first.weight")
    assert trace.word_length[-1, i] == round(float(last.word_length.mean()))
    assert trace.fraction_length[-1, i] == round(float(-np.log2(last.step).mean()))
    assert 0 < trace.nonzero[-1, i] <= 1
    assert trace.step[-1] == learner.step, "fine-tuning, in which formats stay, is recorded too"
    weight = learner.layers["first.weight"]
    with learner.evaluation_weights():
        assert trace.nonzero[-1, i] == pytest.approx(float((weight != 0).float().mean()))
    assert widths.means().shape == (len(widths), len(widths.names))


@pytest.mark.filterwarnings("ignore:no bit width moved")
def test_every_phase_is_told_of_once():
    model, optimizer, learner = learning()
    train(model, optimizer, PHASES.total + 3)
    assert [(entry["phase"], entry["steps"]) for entry in learner.log] == [
        ("pretraining", 6),
        ("learning", 24),
        ("finetuning", 10),
    ]
    assert learner.log[2]["bit_change"] == 0
    model, optimizer, learner = learning(phases=Phases(0, 4, 0))
    train(model, optimizer, 6)
    assert [entry["phase"] for entry in learner.log] == ["learning"]


SHORTER = [(20, Phases(6, 10, 10)), (26, Phases(6, 18, 10)), (20, Phases(3, 5, 2)), (4, Phases(2, 1, 1))]


@pytest.mark.filterwarnings("ignore:no bit width moved")
@pytest.mark.parametrize(("at", "phases"), SHORTER)
def test_ends_that_are_past_when_phases_change_are_made_up_for(at, phases):
    model, optimizer, learner = learning()
    train(model, optimizer, at)
    learner.use_phases(phases)
    train(model, optimizer, max(phases.settling - at, 1), first=at)
    settled = bits(learner)
    assert max(learner.size.weight_bits, learner.size.activation_bits) <= 4 * (1 + 1e-9)
    train(model, optimizer, max(phases.total - learner.step, 1), first=learner.step)
    assert np.array_equal(bits(learner), settled)
    assert [entry["phase"] for entry in learner.log] == ["pretraining", "learning", "finetuning"]
    assert learner.log[1]["weight_kilobytes"] <= learner.log[1]["weight_budget"]
    assert model.norm.momentum == 0.1


def test_settled_widths_stay_when_phases_become_longer():
    model, optimizer, learner = learning()
    train(model, optimizer, 25)
    settled = bits(learner)
    longer = Phases(30, 40, 5)
    learner.use_phases(longer)
    train(model, optimizer, longer.total - 25, first=25)
    assert np.array_equal(bits(learner), settled)
    assert learner.phase == "finetuning"


def test_widths_are_a_record_that_changes_nothing():
    _, _, learner = learning()
    before = learner.size
    learner.widths.numel[:] = 0
    assert learner.size == before


def test_no_movement_is_warned_of():
    model, optimizer, _ = learning(width_rate=0.0)
    with pytest.warns(UserWarning, match="no bit width moved in learning"):
        train(model, optimizer, 30)


def test_penalty_is_equation_2():
    _, _, learner = learning(beta=2.0)
    size = learner.size
    targets = budgets(learner, 4.0)
    excess = (size.weight_kilobytes - targets[0], size.activation_kilobytes - targets[1])
    assert learner.penalty().item() == pytest.approx(2 * excess[0] ** 2 + 2 * excess[1] ** 2)


# LSQ


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_lsq_stays_at_its_widths_and_learns_its_steps(width):
    model, optimizer, learner = given(width, activation_bits=width)
    before = learner.formats
    train(model, optimizer, 8)
    for _name, form in learner.formats.items():
        assert (form.word_length == width).all()
        assert (form.step > 0).all()
    assert not np.array_equal(learner.formats["first.weight"].step, before["first.weight"].step)
    weight = model.get_parameter("first.weight").detach()
    assert all(part.unique().numel() <= 2**width for part in weight)
    assert learner.size.weight_bits == width
    assert learner.phase == "lsq"


def test_lsq_starts_where_its_paper_does():
    _, _, learner = given(3)
    weight = learner.masters["first.weight"]
    expected = 2 * weight.abs().mean((1, 2, 3)) / math.sqrt(3)
    torch.testing.assert_close(torch.from_numpy(learner.steps["first.weight"]), expected)


def test_lsq_moves_steps_by_momentum_at_the_optimizers_rate():
    model, optimizer = build()
    learner = attach_lsq(optimizer, model, weight_bits=3, per_channel=False, momentum=0.5)
    velocity = 0.0
    for step in range(3):
        d = torch.from_numpy(learner.steps["head.weight"])[0]
        optimizer.zero_grad()
        inputs, targets = pictures(step)
        nn.functional.cross_entropy(model(inputs), targets).backward()
        gradient = model.head.weight.grad.clone()
        master = learner.masters["head.weight"].clone()
        optimizer.step()
        leaf = d.clone().requires_grad_()
        (expected,) = torch.autograd.grad(adapt.learned.lsq(master, leaf, 3), leaf, gradient)
        velocity = 0.5 * velocity + expected.item()
        found = learner.steps["head.weight"][0]
        moved = d.item() - 0.05 * velocity
        assert 0.95 < moved / d.item() < 1.05
        assert found.item() == pytest.approx(moved, rel=1e-4)


def test_lsq_moves_steps_by_a_twentieth_at_most_and_loses_the_velocity_that_they_cannot_follow():
    model, optimizer = build()
    learner = attach_lsq(optimizer, model, weight_bits=1, per_channel=False)
    for sign in (1.0, -1.0, -1.0):
        before = learner.steps["head.weight"].item()
        optimizer.zero_grad()
        (sign * 1e6 * model.head.weight.abs().sum()).backward()
        optimizer.step()
        assert learner.steps["head.weight"].item() == pytest.approx((1 - 0.05 * sign) * before, rel=1e-6)


def test_lsq_per_tensor_has_one_step():
    _, _, learner = given(3, per_channel=False)
    assert all(form.axis is None for form in learner.formats.values())


@pytest.mark.parametrize("per_channel", [True, False])
def test_lsq_with_power_of_two_steps_is_fixed_point(per_channel):
    model, optimizer, learner = given(3, activation_bits=4, per_channel=per_channel, power_of_two=True)
    first = {name: steps.copy() for name, steps in learner.steps.items()}
    optimizer.param_groups[0]["lr"] = 0.1
    train(model, optimizer, 30)
    for name, form in learner.formats.items():
        assert form.fraction_length is not None, name
        assert np.array_equal(form.step, learner.steps[name] if form.axis is not None else learner.steps[name][0])
    assert any(not np.array_equal(first[name], steps) for name, steps in learner.steps.items())
    assert on_grid(model.head.weight.detach(), learner.formats["head.weight"].step.max() / 64)


def test_lsq_with_power_of_two_steps_keeps_what_gradients_have_moved():
    model, optimizer = build()
    learner = attach_lsq(optimizer, model, weight_bits=3, per_channel=False, momentum=0.0, power_of_two=True)
    for step in range(3):
        d = learner.state_dict()["formats"]["step"][-2].clone()
        optimizer.zero_grad()
        inputs, targets = pictures(step)
        nn.functional.cross_entropy(model(inputs), targets).backward()
        gradient = model.head.weight.grad.clone()
        leaf, master = d.clone().requires_grad_(), learner.masters["head.weight"].clone()
        optimizer.step()
        loss = adapt.learned.lsq(master, leaf, 3, power_of_two=True)
        (expected,) = torch.autograd.grad(loss, leaf, gradient)
        found = learner.state_dict()["formats"]["step"][-2]
        assert found.item() == pytest.approx(max(d.item() - 0.05 * expected.item(), d.item() / 2), rel=1e-5)


def test_lsq_schedule():
    model, optimizer, _ = given(4, steps=10, warmup=0.2)
    found = []
    for step in range(10):
        train(model, optimizer, 1, first=step)
        found.append(optimizer.param_groups[0]["lr"])
    assert found == pytest.approx([0.05 * rate(step, 10, 0.2) for step in range(10)])


# Refusals


def refused(kind, message, call):
    with pytest.raises(kind, match=message):
        call()


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"weight_budget": 4}, TypeError, "weight_budget must be an adapt.learned.Budget"),
        ({"activation_budget": "4"}, TypeError, "activation_budget must be an adapt.learned.Budget"),
        ({"phases": (1, 1, 1)}, TypeError, "phases must be an adapt.learned.Phases"),
        ({"phases": Phases(5, 0, 5)}, ValueError, "at least one step of learning"),
        ({"activation_size": "mean"}, ValueError, 'activation_size must be "sum" or "max"'),
        ({"floor": 0}, ValueError, "floor must be 1 or 2"),
        ({"weight_scaling": "x"}, ValueError, 'weight_scaling must be "ste"'),
        ({"activation_scaling": None}, ValueError, 'activation_scaling must be "ste"'),
        ({"delta": "a"}, TypeError, "delta must be a number"),
        ({"beta": -1}, ValueError, "beta must be a finite number ≥ 0, got -1"),
        ({"update_every": 0}, ValueError, "update_every must be at least 1"),
        ({"update_every": 2.5}, TypeError, "update_every must be a whole number"),
        ({"width_rate": "fast"}, TypeError, "width_rate must be a number"),
        ({"warmup": 2}, ValueError, "warmup must lie between 0 and 1"),
        ({"weight_budget": Budget(bits=1.5)}, ValueError, "weight_budget of 1.5 bits on average cannot be met"),
        ({"activation_budget": Budget(kilobytes=0.01)}, ValueError, "activation_budget of 0.01 kB cannot be met"),
        ({"layers": "all"}, TypeError, "layers must be a function"),
        ({"schedule": 3}, TypeError, "schedule must be True or False, got 3"),
        ({"quantize_biases": 3}, TypeError, "quantize_biases must be True or False, got 3"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else None,
)
def test_bad_options_are_refused_by_name_and_leave_nothing_attached(options, kind, message):
    model, optimizer = build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    refused(kind, message, lambda: learning(model, optimizer, **options))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    learning(model, optimizer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_bits": 9}, "weight_bits must be a whole number of 1 to 8 bits, got 9"),
        ({"weight_bits": 4, "activation_bits": 0}, "activation_bits must be a whole number"),
        ({"weight_bits": 4, "momentum": 1.5}, "momentum must lie between 0 and 1"),
        ({"weight_bits": 4, "steps": 0}, "steps must be at least 1"),
    ],
)
def test_bad_options_of_lsq(options, message):
    model, optimizer = build()
    refused(ValueError, message, lambda: attach_lsq(optimizer, model, [pictures(0)[0]], **options))


def test_lsq_takes_flags_that_are_flags():
    for name in ("per_channel", "power_of_two", "quantize_biases"):
        refused(TypeError, f"{name} must be True or False, got 3", lambda name=name: given(4, **{name: 3}))


def test_an_optimizer_that_maximises_is_refused():
    model = Convolutional()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, maximize=True)
    message = "the optimizer has maximize=True: minimise the negative instead"
    refused(ValueError, message, lambda: learning(model, optimizer))
    refused(ValueError, message, lambda: attach_lsq(optimizer, model, weight_bits=4))


def test_calibration_is_needed_and_must_run():
    options = {"weight_budget": Budget(bits=4), "activation_budget": Budget(bits=4), "phases": PHASES}
    model, optimizer = build()
    refused(ValueError, "calibration has no batch", lambda: attach(optimizer, model, **options))
    refused(
        RuntimeError,
        "calibration could not run a batch through Convolutional",
        lambda: attach(optimizer, model, [torch.zeros(2, 5)], **options),
    )
    for nothing in (5, None):
        message = f"calibration must be batches, got {nothing}"
        refused(TypeError, message, lambda nothing=nothing: attach(optimizer, model, nothing, **options))
    images, labels = pictures(0)
    refused(
        TypeError,
        r"calibration must be batches, got one tensor of shape .*: pass \[batch\]",
        lambda: attach(optimizer, model, images, **options),
    )
    for batch in ([images, labels], (images, labels)):
        refused(
            RuntimeError,
            r"through Convolutional \(TypeError: .*\): a batch is .* pass \[x for x, _ in loader\]$",
            lambda batch=batch: attach(optimizer, model, [batch], **options),
        )


class Scaled(nn.Module):
    """Takes two inputs."""

    def __init__(self):
        super().__init__()
        self.body = Convolutional()

    def forward(self, x, scale):
        return self.body(x * scale.mean())


def test_calibration_batches_that_cannot_be_are_refused_in_its_own_words():
    model = Scaled()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    def call(*batches):
        budget = Budget(bits=4)
        return attach(optimizer, model, batches, weight_budget=budget, activation_budget=budget, phases=PHASES)

    x = pictures(0)[0]
    message = "whose tensors all have the samples as their first dimension, got shapes "
    refused(ValueError, message + r"\[\[8, 3, 8, 8\], \[3\]\]", lambda: call((x, torch.ones(3))))
    refused(ValueError, message + r"\[\[0, 3, 8, 8\], \[0\]\]", lambda: call((x[:0], torch.ones(0))))
    refused(ValueError, message + r"\[\]", lambda: call(()))
    refused(ValueError, "no finite value at body.first.weight.input", lambda: call((x * torch.nan, torch.ones(8))))
    whole, part = call((x, torch.ones(8))), (x * torch.nan, torch.ones(8))
    expected = whole.formats["body.first.input"]
    whole.detach("masters")
    found = call((x, torch.ones(8)), part).formats["body.first.input"]
    assert np.array_equal(found.maximum, expected.maximum)


def test_sizes_are_those_of_one_sample_where_batches_differ():
    model, optimizer = build()
    large = torch.randn(2, 3, 16, 16)
    options = {"weight_budget": Budget(bits=4), "activation_budget": Budget(bits=4), "phases": PHASES}
    learner = attach(optimizer, model, [pictures(0)[0], large], **options)
    widths = learner.widths
    assert widths.sizes("first.weight.input") == 3 * 16 * 16
    assert widths.sizes("depthwise.weight.input") == 8 * 16 * 16


def test_processes_that_calibrate_with_other_shapes_count_alike(monkeypatch):
    monkeypatch.setattr("adapt.distributed.ranks.maximum_", lambda values: values.mul_(4))
    _, _, learner = learning()
    assert learner.widths.sizes("first.weight.input") == 4 * 3 * 64


def test_calibration_leaves_buffers_and_random_streams():
    model, optimizer = build()
    model.drop = nn.Dropout()
    before, state = model.norm.running_mean.clone(), torch.get_rng_state()
    learning(model, optimizer)
    assert torch.equal(model.norm.running_mean, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_what_attach_refuses_is_refused():
    model, optimizer, learner = learning()
    refused(ValueError, "has a controller already", lambda: learning(model, optimizer))
    refused(ValueError, "has a controller already", lambda: adapt.attach(optimizer, model))
    learner.detach()
    lbfgs = torch.optim.LBFGS(model.parameters())
    refused(ValueError, "evaluates the loss several times", lambda: learning(model, lbfgs))
    refused(TypeError, "module must be a torch.nn.Module", lambda: learning(list(model.parameters()), optimizer))


def test_layers_that_come_later_are_refused():
    torch.manual_seed(0)
    model = Convolutional()
    model.head.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    _, _, learner = learning(model, optimizer)
    model.head.requires_grad_(True)
    refused(RuntimeError, r"head.weight.* joined the optimizer or was unfrozen", lambda: train(model, optimizer, 1))
    learner.detach()


def test_closures_and_other_optimizers():
    torch.manual_seed(0)
    model = Convolutional()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    _, _, learner = learning(model, optimizer)

    def closure():
        optimizer.zero_grad()
        inputs, targets = pictures(learner.step)
        loss = nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        return loss

    for _ in range(PHASES.total):
        optimizer.step(closure)
    assert learner.size.weight_bits <= 4.04
