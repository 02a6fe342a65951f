"""Weights are rounded channel by channel, and their gradients go back to weights, steps and ranges."""

import pytest
import torch
from torch import nn

from adapt.layers.channels import channels_of
from adapt.learned import attach_lsq, quantize
from tests.learned.networks import Convolutional, Reader, gradient_sums, gradients_of_formats, learning, train
from tests.training import Conv1D


@pytest.mark.parametrize(
    ("owner", "count"),
    [
        (nn.Linear(5, 7), 7),
        (nn.Conv1d(4, 6, 3), 6),
        (nn.Conv2d(4, 6, 3, groups=2), 6),
        (nn.Conv2d(6, 6, 3, groups=6), 6),
        (nn.Conv3d(2, 3, 2), 3),
        (nn.ConvTranspose2d(4, 6, 3), 6),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), 6),
        (nn.ConvTranspose1d(6, 6, 3, groups=6), 6),
        (nn.Embedding(10, 4), 4),
        (Conv1D(7, 5), 7),
        (nn.LSTM(3, 5).requires_grad_(), None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_channels_are_those_of_the_output(owner, count):
    if count is None:
        assert channels_of(owner.weight_ih_l0, owner).count == 20
        return
    weight = owner.weight.detach()
    channels = channels_of(weight, owner)
    assert channels.count == count
    assert channels_of(weight, owner, per_channel=False).count == 1
    if isinstance(owner, nn.Embedding):
        return
    # Each format acts on what makes one output channel, and on nothing else.
    kernel = weight.shape[2:]
    inputs = {nn.Linear: "in_features", Conv1D: "nx"}.get(type(owner))
    x = torch.randn(1, getattr(owner, inputs)) if inputs else None
    if x is None:
        x = torch.randn(1, owner.in_channels, *(9 for _ in kernel))
    owner.bias.data.zero_()
    before = owner(x)
    scale = torch.arange(1.0, count + 1).view(channels.formats)
    channels.view(owner.weight.data).mul_(scale)
    expected = before * torch.arange(1.0, count + 1).view(1, count, *(1 for _ in kernel))
    torch.testing.assert_close(owner(x), expected, rtol=1e-4, atol=1e-5)


def test_weights_are_the_masters_rounded_by_their_channels_formats():
    # After 12 steps a format's range is 15.5 of its steps, a tie.
    model, optimizer, learner = learning()
    train(model, optimizer, 18)
    for name in learner.precisions:
        master, weight = learner.masters[name], model.get_parameter(name).detach()
        channels = channels_of(master, model.get_submodule(name.rpartition(".")[0]))
        step, maximum = (torch.from_numpy(a[name]).view(channels.formats) for a in (learner.steps, learner.ranges))
        expected = quantize(channels.view(master), step, maximum)
        torch.testing.assert_close(channels.view(weight), expected, rtol=1e-6, atol=1e-7)
        assert not torch.equal(weight, master)
        assert len(learner.steps[name]) == channels.count


def test_gradients_are_those_of_autograd_through_the_quantiser():
    model, optimizer, learner = learning(update_every=100)
    train(model, optimizer, 1)
    before = gradient_sums(learner)
    masters = {name: master.clone() for name, master in learner.masters.items()}
    given = {name: torch.randn_like(master) for name, master in masters.items()}
    for name, parameter in model.named_parameters():
        parameter.grad = given[name].clone() if name in given else None
    optimizer.step()
    for name, sums in gradient_sums(learner).items():
        if name.endswith(".input"):
            continue
        channels = channels_of(masters[name], model.get_submodule(name.rpartition(".")[0]))
        values = learner.steps[name], learner.ranges[name]
        leaves = [torch.from_numpy(a).view(channels.formats).requires_grad_() for a in values]
        result = quantize(channels.view(masters[name].requires_grad_()), *leaves, scaling="ewgs")
        weight, *expected = torch.autograd.grad(result, (masters[name], *leaves), channels.view(given[name]))
        # The optimizer sees the gradient with respect to the masters.
        torch.testing.assert_close(model.get_parameter(name).grad, weight, rtol=1e-4, atol=1e-6)
        found = gradients_of_formats(learner, sums - before[name], name)
        for to_format, gradient in zip(found, expected, strict=True):
            torch.testing.assert_close(to_format.float(), gradient.flatten(), rtol=2e-3, atol=1e-3)


def test_a_gradient_that_is_not_finite_counts_as_zero_and_tells_nothing():
    model, optimizer, learner = learning(activation_budget=None)
    train(model, optimizer, 1)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    model.head.weight.grad[0, 0] = torch.nan
    before = gradient_sums(learner)["head.weight"]
    optimizer.step()
    assert learner.skipped["head.weight"] == 1
    assert learner.skipped["first.weight"] == 0
    assert torch.equal(gradient_sums(learner)["head.weight"], before)
    assert torch.isfinite(learner.masters["head.weight"]).all()


def test_attention_and_embeddings_have_formats_by_channel():
    torch.manual_seed(0)
    model = Reader()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def words(step):
        generator = torch.Generator().manual_seed(step)
        return torch.randint(11, (4, 5), generator=generator), torch.randint(3, (4,), generator=generator)

    from adapt.learned import Budget, Phases, attach

    learner = attach(
        optimizer,
        model,
        [words(99)[0]],
        weight_budget=Budget(bits=4),
        activation_budget=Budget(bits=4),
        phases=Phases(2, 8, 2),
        update_every=2,
    )
    train(model, optimizer, 12, data=words)
    counts = {name: form.step.size for name, form in learner.formats.items()}
    assert counts["words.weight"] == 8
    assert counts["attention.in_proj_weight"] == 24
    assert counts["attention.out_proj.weight"] == 8
    assert counts["attention.in_proj_bias"] == counts["head.bias"] == 1
    # What happens within attention, and what an embedding looks up, cannot be reached or is on a grid already.
    assert [name for name in counts if name.endswith(".input")] == ["head.input"]
    assert learner.size.weight_bits <= 4 * 1.01


def test_names_and_modules_stay():
    names, modules = list(Convolutional().state_dict()), [type(m) for m in Convolutional().modules()]
    model, optimizer, _ = learning()
    train(model, optimizer, 2)
    assert list(model.state_dict()) == names
    assert [type(m) for m in model.modules()] == modules
    fresh = Convolutional()
    fresh.load_state_dict(model.state_dict())


def test_passes_before_the_first_step_look_at_samples_which_hold_for_channels_of_every_kind(monkeypatch):
    """Rounding whole weights in every pass took as long as a pass of 250 samples through 20 million weights."""
    model = nn.ModuleList(
        [
            nn.Linear(90, 70),
            nn.Conv2d(8, 16, 9).to(memory_format=torch.channels_last),
            nn.ConvTranspose2d(12, 10, 11, groups=2),
            nn.Embedding(100, 60),
        ]
    )
    learner = attach_lsq(torch.optim.SGD(model.parameters(), lr=0.1), model, weight_bits=3)
    (masters,) = learner.all_masters
    rounded, view_of = [], masters.view_of
    monkeypatch.setattr(masters, "view_of", lambda index, view: rounded.append(index) or view_of(index, view))
    assert masters.looks_closely
    assert masters.written() == set()
    assert not rounded
    for index, parameter in enumerate(masters.parameters):
        parameter.data.mul_(1.01)
        assert masters.written() == set(range(index + 1))
