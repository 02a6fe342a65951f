"""Training with a fraction length for every output channel."""

import numpy as np
import pytest
import torch
from torch import nn

import adapt
from adapt.numerics import ChannelPrecision, Precision
from adapt.numerics.format import Format
from tests.learned import networks
from tests.learned.networks import Convolutional, Reader
from tests.training import Conv1D, assembled, copies, net, train

CHANNELS = adapt.AdaPT.compact(bits=4, channels=True, lookback=(2, 4))
COUNTS = {"first": 8, "depthwise": 8, "grouped": 8, "up": 6, "head": 3}
"""Output channels of `Convolutional`: those of the transposed convolution are counted group by group."""


def of_every_channel(word_length, lengths):
    """A table for `Convolutional`: the lengths in turn, channel by channel."""
    return {
        f"{name}.weight": ChannelPrecision(word_length, tuple(lengths[i % len(lengths)] for i in range(count)))
        for name, count in COUNTS.items()
    }


def convolutional(policy, optimizer="SGD", memory_format=torch.contiguous_format, **options):
    torch.manual_seed(0)
    model = Convolutional().to(memory_format=memory_format)
    rates = {"lr": 0.05, "momentum": 0.9} if optimizer == "SGD" else {"lr": 0.01}
    made = getattr(torch.optim, optimizer)(model.parameters(), **rates)
    return model, made, adapt.attach(made, model, policy, **options)


def reader(policy):
    torch.manual_seed(0)
    model = Reader()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, optimizer, adapt.attach(optimizer, model, policy, rounding="nearest")


def words(step):
    generator = torch.Generator().manual_seed(step)
    return torch.randint(11, (4, 5), generator=generator), torch.randint(3, (4,), generator=generator)


def learn(model, optimizer, controller, steps, first=0):
    data = words if isinstance(model, Reader) else networks.pictures
    for step in range(first, first + steps):
        inputs, targets = data(step)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        controller.observe(loss)
        optimizer.step()


@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
@pytest.mark.parametrize(
    ("optimizer", "memory_format"), [("SGD", torch.channels_last), ("Adam", torch.contiguous_format)]
)
def test_channels_of_one_length_train_bit_for_bit_like_a_layer_without(rounding, optimizer, memory_format):
    runs = []
    for table in (dict.fromkeys(of_every_channel(5, (4,)), Precision(5, 4)), of_every_channel(5, (4,))):
        policy = adapt.Fixed(table, quantize_gradients=True)
        runs.append(convolutional(policy, optimizer, memory_format, rounding=rounding, l1=1e-3, l2=1e-3))
        learn(*runs[-1], steps=5)
    (model, _, controller), (other, _, its_controller) = runs
    for parameter, its_parameter in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(parameter, its_parameter)
    for name, master in controller.masters.items():
        assert torch.equal(master, its_controller.masters[name])
    assert controller.penalty() == its_controller.penalty()
    for column in ("nonzero", "word_length", "fraction_length"):
        assert np.array_equal(controller.trace[column], its_controller.trace[column])


@pytest.mark.parametrize("lengths", [(3, 6, 4), (2, 2, 9)])
def test_every_view_of_every_kind_of_layer_lies_on_the_grids_of_its_channels(lengths):
    model, optimizer, controller = convolutional(adapt.Fixed(of_every_channel(5, lengths)))
    learn(model, optimizer, controller, 3)
    for name, parameter in controller.layers.items():
        form, master = controller.formats[name], controller.masters[name]
        assert (form.axis, form.groups) == ((1, 2) if name == "up.weight" else (0, 1))
        assert form.precision == controller.precisions[name]
        assert torch.equal(form.quantize(parameter), parameter)
        assert not torch.equal(form.quantize(master), parameter), "training rounds stochastically"
        with controller.evaluation_weights():
            assert torch.equal(form.quantize(master), parameter)
        with controller.master_weights():
            assert torch.equal(master, parameter)


def test_stochastic_rounding_has_the_right_mean_in_every_channel():
    model = nn.Linear(2, 2, bias=False)
    nn.init.constant_(model.weight, 0.3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    adapt.attach(optimizer, model, adapt.Fixed({"weight": ChannelPrecision(8, (1, 6))}))
    seen = []
    for _ in range(400):
        optimizer.zero_grad()
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        seen.append(model.weight.detach().clone())
    coarse, fine = torch.stack(seen).unbind(1)
    assert set(coarse.unique().tolist()) == {0.0, 0.5}
    assert set(fine.unique().tolist()) == {19 / 64, 20 / 64}
    assert coarse.mean(0).tolist() == pytest.approx([0.3, 0.3], abs=0.06)
    assert fine.mean(0).tolist() == pytest.approx([0.3, 0.3], abs=0.002)


def test_compact_gives_every_channel_its_own_length():
    model, optimizer, controller = convolutional(CHANNELS, rounding="nearest", activations=8, quantize_biases=True)
    with torch.no_grad():
        model.first.weight[0] *= 2**-5
    learn(model, optimizer, controller, 9)
    for name, form in controller.precisions.items():
        assert type(form) is ChannelPrecision
        assert len(form.fraction_lengths) == COUNTS[name.partition(".")[0]]
        assert controller.formats[name].quantize(controller.masters[name]).equal(controller.layers[name])
    first = controller.precisions["first.weight"].fraction_lengths
    assert first[0] >= max(first[1:]) + 2
    trace = controller.trace
    assert trace.fraction_length[-1].tolist() == [min(p.fraction_lengths) for p in controller.precisions.values()]
    assert trace.word_length[-1].astype(float) @ trace.numel / trace.numel.sum() <= 4
    assert controller.formats["first.bias"].word_length == controller.precisions["first.weight"].word_length
    assert controller.formats["first.input"].word_length == 8


def test_an_embedding_has_columns_and_a_layer_without_a_module_rows():
    model, optimizer, controller = reader(CHANNELS)
    learn(model, optimizer, controller, 6)
    assert (controller.formats["words.weight"].axis, controller.formats["words.weight"].word_length.size) == (1, 8)
    assert controller.formats["attention.in_proj_weight"].word_length.size == 24
    for name, weight in controller.layers.items():
        assert torch.equal(controller.formats[name].quantize(controller.masters[name]), weight)
    parameters = dict(Reader().named_parameters())
    optimizer = torch.optim.SGD(parameters.values(), lr=0.1)
    controller = adapt.attach(optimizer, parameters.items(), CHANNELS)
    assert (controller.formats["words.weight"].axis, controller.formats["words.weight"].word_length.size) == (0, 11)


def test_a_layer_of_one_channel_has_one_length_and_a_transposed_weight_columns():
    _, _, controller = assembled(nn.Sequential(Conv1D(4, 6), nn.Linear(4, 1)), CHANNELS)
    assert controller.formats["0.weight"].axis == 1
    assert type(controller.precisions["1.weight"]) is Precision
    assert len(controller.precisions["0.weight"].fraction_lengths) == 4


@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
def test_a_resumed_run_goes_on_bit_for_bit(rounding, tmp_path):
    straight = convolutional(CHANNELS, rounding=rounding, quantize_biases=True)
    learn(*straight, steps=11)
    model, optimizer, controller = convolutional(CHANNELS, rounding=rounding, quantize_biases=True)
    learn(model, optimizer, controller, 5)
    adapt.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "run.pt")
    assert adapt.formats(tmp_path / "run.pt") == controller.formats

    state = adapt.load(tmp_path / "run.pt")
    again = convolutional(CHANNELS, rounding=rounding, quantize_biases=True)
    again[0].load_state_dict(state["model"])
    again[1].load_state_dict(state["optimizer"])
    learn(*again, steps=6, first=5)
    assert again[2].precisions == straight[2].precisions
    for parameter, other in zip(straight[0].parameters(), again[0].parameters(), strict=True):
        assert torch.equal(parameter, other)
    assert all(torch.equal(master, again[2].masters[name]) for name, master in straight[2].masters.items())


@pytest.mark.parametrize("after", [True, False])
def test_channels_can_be_switched_on_and_off_when_a_run_resumes(after):
    policies = [adapt.AdaPT.compact(bits=4, channels=c, lookback=(2, 4)) for c in (not after, after)]
    model, optimizer, controller = reader(policies[0])
    learn(model, optimizer, controller, 3)
    other, its_optimizer, its_controller = reader(policies[1])
    other.load_state_dict(model.state_dict())
    its_optimizer.load_state_dict(optimizer.state_dict())
    assert its_controller.precisions == controller.precisions
    learn(other, its_optimizer, its_controller, 6)
    assert {type(form) for form in its_controller.precisions.values()} == {ChannelPrecision if after else Precision}


def test_a_state_with_other_channels_is_refused_before_anything_changes():
    model, optimizer, controller = reader(CHANNELS)
    learn(model, optimizer, controller, 3)
    state = controller.state_dict()
    state["state"]["formats"][0] = [4, [3, 5]]
    other, _, its_controller = reader(CHANNELS)
    before = copies(other.named_parameters())
    with pytest.raises(ValueError, match=r"words.weight has 8 output channels, but its format is ⟨4, 3 to 5⟩ in 2"):
        its_controller.load_state_dict(state)
    assert all(torch.equal(parameter, before[name]) for name, parameter in other.named_parameters())
    assert its_controller.step == 0


def test_weights_that_are_loaded_begin_with_formats_of_their_own():
    model, _, controller = assembled(net(), CHANNELS)
    other = net(3)
    with torch.no_grad():
        other[0].weight *= torch.logspace(-3, 3, 8)[:, None]
    model.load_state_dict(other.state_dict())
    model(torch.zeros(1, 6))
    lengths = controller.precisions["0.weight"].fraction_lengths
    assert max(lengths) - min(lengths) >= 15


def test_layers_that_join_have_channels():
    model = net()
    model[0].requires_grad_(False)
    model, optimizer, controller = assembled(model, CHANNELS)
    train(model, optimizer, 2, controller=controller)
    model[0].requires_grad_(True)
    train(model, optimizer, 3, first=2, controller=controller)
    counts = {name: len(form.fraction_lengths) for name, form in controller.precisions.items()}
    assert counts == {"0.weight": 8, "2.weight": 3}


def test_saturation_is_that_of_every_channel():
    rest = {"2.weight": ChannelPrecision(4, (3, 3, 3))}
    table = rest | {"0.weight": ChannelPrecision(4, (9, *[1] * 7))}
    model, optimizer, controller = assembled(net(), adapt.Fixed(table), lr=0.0)
    train(model, optimizer, 34, controller=controller)
    assert len(controller.trace) == 34  # and no warning
    crowded = adapt.Fixed(rest | {"0.weight": ChannelPrecision(4, (1, *[9] * 7))})
    model, optimizer, controller = assembled(net(), crowded, lr=0.0)
    train(model, optimizer, 34, controller=controller)
    with pytest.warns(UserWarning, match=r"stay outside the range of their format ⟨4, 1 to 9⟩ in 8 channels"):
        assert len(controller.trace) == 34


def test_activations_in_the_format_of_a_layer_follow_their_range():
    policy = adapt.Fixed({"0.weight": ChannelPrecision(6, (5,) * 8), "2.weight": Precision(6, 5)})
    model, optimizer, controller = assembled(net(), policy, activations="layer")
    train(model, optimizer, 3, controller=controller)
    assert controller.formats["2.input"] == Format.of(Precision(6, 5))
    assert controller.formats["0.input"].word_length == 6
    assert controller.formats["0.input"].maximum >= 1


def test_a_layer_keeps_the_bits_that_are_set_by_hand():
    bits = {"head": 8, "first": (6, 7)}
    policy = adapt.AdaPT.compact(bits=5, channels=True, lookback=(2, 4))
    model, optimizer, controller = convolutional(policy, rounding="nearest", layer_bits=bits)
    assert controller.precisions["head.weight"].word_length == 8
    learn(model, optimizer, controller, 6)
    assert controller.precisions["head.weight"].word_length == 8
    assert controller.precisions["first.weight"].word_length in (6, 7)
    assert {type(form) for form in controller.precisions.values()} == {ChannelPrecision}


def test_steps_of_lsq_by_channel_that_are_powers_of_two_can_be_trained_with():
    model, optimizer, learner = networks.given(4, power_of_two=True, quantize_biases=False)
    networks.train(model, optimizer, 3)
    table = {name: form for name, form in learner.formats.items() if name in learner.layers}
    other, its_optimizer = networks.build()
    policy = adapt.Fixed(table)
    assert adapt.attach(its_optimizer, other, policy, rounding="nearest").formats == table
    policy = policy.for_layers(list(table))
    assert adapt.switching.from_dict(adapt.switching.to_dict(policy)) == policy


def test_a_table_for_other_channels_is_refused_by_name():
    with pytest.raises(ValueError, match=r"0.weight has 8 output channels, but its format is ⟨4, 3 to 5⟩ in 6"):
        assembled(net(), adapt.Fixed({"0.weight": ChannelPrecision(4, (3, *[5] * 5)), "2.weight": None}))


def test_a_table_for_channels_that_lie_elsewhere_is_refused_by_name():
    model = nn.Sequential(nn.Embedding(8, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    table = adapt.attach(optimizer, model, CHANNELS).formats
    other = dict(nn.Sequential(nn.Embedding(8, 8)).named_parameters())
    optimizer = torch.optim.SGD(other.values(), lr=0.1)
    with pytest.raises(ValueError, match=r"0.weight lie along dimension 1 in its format, but here along dimension 0:"):
        adapt.attach(optimizer, other.items(), adapt.Fixed(table))
