"""Whole weights that other code writes before the first step: formats begin with them, and with nothing less."""

import copy
import warnings

import pytest
import torch

import adapt
from adapt import learned
from tests.training import CLIMBING, RESTLESS, batch, copies, net, train


def learner(attach, **options):
    return lambda optimizer, model: attach(optimizer, model, **options)


def policy(chosen, rounding="nearest", **options):
    return lambda optimizer, model: adapt.attach(optimizer, model, chosen, rounding=rounding, **options)


LEARNED = {
    "learned widths": learner(
        learned.attach, weight_budget=learned.Budget(bits=4), phases=learned.Phases(4, 4, 4), schedule=False
    ),
    "LSQ": learner(learned.attach_lsq, weight_bits=3),
    "LSQ by channel": learner(learned.attach_lsq, weight_bits=4, per_channel=True),
    "AQT": learner(learned.attach_aqt, steps=10),
}
GUESTS = {
    "paper": policy(RESTLESS),
    "compact": policy(adapt.AdaPT.compact(), quantize_biases=True),
    "compact, stochastic": policy(adapt.AdaPT.compact(), "stochastic"),
    "compact(bits=4)": policy(adapt.AdaPT.compact(bits=4)),
    "fixed": policy(adapt.Fixed(adapt.Precision(8, 5)), quantize_biases=True),
    "muppet": policy(CLIMBING),
} | LEARNED


def source(seed=5, scale=40.0):
    """A network whose weights are far outside of the formats that the usual initialisation gets."""
    model = net(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    return model


def copied(model, weights):
    with torch.no_grad():
        for parameter, weight in zip(model.parameters(), weights, strict=True):
            parameter.copy_(weight)


def through_data(model, weights):
    for parameter, weight in zip(model.parameters(), weights, strict=True):
        parameter.data.copy_(weight)


def other_memory(model, weights):
    for parameter, weight in zip(model.parameters(), weights, strict=True):
        parameter.data = weight.detach().clone()


def vector(model, weights):
    torch.nn.utils.vector_to_parameters(torch.nn.utils.parameters_to_vector(weights), model.parameters())


def initialised(model, weights):
    """An initialisation function that a framework applies: it gets the values from somewhere else."""
    given = iter(weights)

    def begin(module):
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.zeros_(module.weight)
            module.weight.data.add_(next(given))
            torch.nn.init.constant_(module.bias, 0.0)
            module.bias.data += next(given)

    model.apply(begin)


WRITES = [copied, through_data, other_memory, vector, initialised]


def look(how, model, optimizer, controller):
    """The first moment at which somebody sees the weights."""
    if how == "training":
        model.train()(batch(0)[0])
    elif how == "evaluation":
        model.eval()(batch(0)[0])
        model.train()
    elif how == "checkpoint":
        return model.state_dict()
    elif how == "optimizer":
        optimizer.state_dict()
    elif how == "context":
        with controller.evaluation_weights():
            return copies(model.named_parameters())
    return None


def attached(attach, model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    return model, optimizer, attach(optimizer, model)


@pytest.mark.covering(2)
@pytest.mark.parametrize("how", ["training", "evaluation", "checkpoint", "optimizer", "context"])
@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("scale", [40.0, 1e-3])
@pytest.mark.parametrize("attach", GUESTS.values(), ids=GUESTS)
def test_a_run_whose_weights_were_copied_in_is_one_that_was_attached_with_them(attach, scale, write, how):
    weights = list(source(scale=scale).parameters())
    model, optimizer, controller = attached(attach, net())
    write(model, weights)
    seen = look(how, model, optimizer, controller)
    other, other_optimizer, expected = attached(attach, source(scale=scale))
    assert repr(controller.formats) == repr(expected.formats)
    if seen is not None:
        with expected.evaluation_weights():
            assert all(torch.equal(seen[name], p) for name, p in other.named_parameters())
    assert torch.equal(model(batch(1)[0]), other(batch(1)[0]))
    for run in ((model, optimizer, controller), (other, other_optimizer, expected)):
        train(run[0], run[1], 3, controller=run[2])
    assert all(torch.equal(controller.masters[name], master) for name, master in expected.masters.items())


@pytest.mark.parametrize("attach", GUESTS.values(), ids=GUESTS)
def test_a_step_that_is_the_first_to_see_them_begins_with_them_too(attach):
    ends = []
    for late in (True, False):
        model, optimizer, controller = attached(attach, net() if late else source())
        if late:
            copied(model, list(source().parameters()))
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 0.1)
        controller.observe(1.0)
        optimizer.step()
        ends.append((controller.masters, repr(controller.formats)))
    assert all(torch.equal(ends[0][0][name], master) for name, master in ends[1][0].items())
    assert ends[0][1] == ends[1][1]


PARTIAL = {
    "a pruning mask": lambda p: p.mul_(p.abs() >= p.abs().flatten().kthvalue(max(int(0.9 * p.numel()), 1)).values),
    "a random mask": lambda p: p.mul_(torch.arange(p.numel()).view_as(p) % 10 == 3),
    "a clamp": lambda p: p.clamp_(-0.7 * float(p.abs().max()), 0.7 * float(p.abs().max())),
    "one element": lambda p: p.view(-1)[0].fill_(0.3),
    "a third of the rows": lambda p: p[: len(p) // 3].fill_(0.3),
    "the same values": lambda p: p.copy_(p.clone()),
}


@pytest.mark.parametrize("write", PARTIAL.values(), ids=PARTIAL)
@pytest.mark.parametrize("through", ["the version", "data"])
@pytest.mark.parametrize("name", ["paper", "compact", "compact, stochastic", "learned widths", "LSQ"])
def test_partial_writes_keep_the_formats(name, through, write):
    model, optimizer, controller = attached(GUESTS[name], net())
    formats, weight, masters = repr(controller.formats), model[0].weight, copies(controller.masters)
    shown = weight.detach().clone()
    with torch.no_grad():
        write(weight if through == "the version" else weight.data)
    written = weight.detach().clone()
    look("training", model, optimizer, controller)
    assert repr(controller.formats) == formats
    expected = torch.where(written == shown, masters["0.weight"], written)
    assert torch.equal(controller.masters["0.weight"], expected)
    train(model, optimizer, 2, controller=controller)


@pytest.mark.parametrize("name", GUESTS)
def test_hidden_writes_before_the_first_step_cost_later_steps_nothing(name):
    model, optimizer, controller = attached(GUESTS[name], net())
    through_data(model, list(source().parameters()))
    train(model, optimizer, 1, controller=controller)
    assert not any(masters.looks_closely for masters in controller.all_masters)


@pytest.mark.parametrize("order", ["evaluation between", "straight back"])
@pytest.mark.parametrize("name", GUESTS)
def test_weights_that_are_lent_before_the_first_step_and_put_back_leave_no_trace(name, order):
    """As by a callback that evaluates averaged weights in Lightning's check before training."""
    model, optimizer, controller = attached(GUESTS[name], net())
    masters, formats = copies(controller.masters), repr(controller.formats)
    own = [parameter.detach().clone() for parameter in model.parameters()]
    copied(model, list(source(scale=3.0).parameters()))
    if order == "evaluation between":
        model.eval()(batch(0)[0])
        assert repr(controller.formats) != formats or name in ("paper", "fixed", "AQT")
    copied(model, own)
    model.train()(batch(0)[0])
    assert all(torch.equal(controller.masters[name], master) for name, master in masters.items())
    assert repr(controller.formats) == formats
    train(model, optimizer, 1, controller=controller)


@pytest.mark.parametrize("how", ["training", "checkpoint"])
@pytest.mark.parametrize("name", ["compact", "LSQ"])
def test_a_write_beside_a_loaded_layer_is_kept(name, how):
    model, optimizer, controller = attached(GUESTS[name], net())
    other = source()
    with torch.no_grad():
        model[0].weight.copy_(other[0].weight)
    model[2].load_state_dict(other[2].state_dict())
    look(how, model, optimizer, controller)
    assert torch.equal(controller.masters["0.weight"], other[0].weight)
    assert torch.equal(controller.masters["2.weight"], other[2].weight)


def test_a_write_beside_a_layer_that_joins_is_kept():
    model = net()
    model[2].weight.requires_grad_(False)
    model, optimizer, controller = attached(GUESTS["compact"], model)
    train(model, optimizer, 3, controller=controller)
    with torch.no_grad():
        model[0].weight.fill_(0.3)
    model[2].weight.requires_grad_(True)
    model(batch(0)[0])
    assert "2.weight" in controller.masters
    assert (controller.masters["0.weight"] == torch.full((), 0.3)).all()


def test_a_mask_after_whole_weights_keeps_their_masters():
    """On a coarse grid many of the new values look like the old ones."""
    model, _, controller = attached(policy(adapt.Fixed(adapt.Precision(2, 1))), net())
    other = net(7)
    copied(model, list(other.parameters()))
    model(batch(0)[0])
    masters = copies(controller.masters)
    with torch.no_grad():
        model[0].weight[0, 0] = 0.25
    model(batch(0)[0])
    masters["0.weight"][0, 0] = 0.25
    assert all(torch.equal(controller.masters[name], master) for name, master in masters.items())


@pytest.mark.parametrize("write", [copied, through_data, other_memory])
@pytest.mark.parametrize("name", ["compact", "compact, stochastic", "muppet", "learned widths", "LSQ", "AQT"])
def test_a_checkpoint_that_other_code_copies_in_continues_bit_for_bit(name, write):
    """In either order; a resumed run keeps its formats and its masters."""
    model, optimizer, controller = attached(GUESTS[name], source(scale=2.0))
    train(model, optimizer, 6, controller=controller)
    weights, state = copies(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    runs = [(model, optimizer, controller)]
    for order in ("weights first", "state first"):
        other, other_optimizer, resumed = attached(GUESTS[name], net())
        if order == "state first":
            other_optimizer.load_state_dict(copy.deepcopy(state))
        write(other, [weights[key] for key, _ in other.named_parameters()])
        if order == "weights first":
            other.eval()(batch(0)[0])
            other.train()
            other_optimizer.load_state_dict(copy.deepcopy(state))
            other[0].bias.data.copy_(weights["0.bias"])
        runs.append((other, other_optimizer, resumed))
    for model, optimizer, controller in runs:
        train(model, optimizer, 3, 6, controller=controller)
    for _, _, resumed in runs[1:]:
        assert repr(resumed.formats) == repr(controller.formats) == repr(runs[0][2].formats)
        assert all(torch.equal(resumed.masters[key], master) for key, master in runs[0][2].masters.items())


@pytest.mark.parametrize("write", [copied, through_data, "load_state_dict"])
@pytest.mark.parametrize("order", [1, -1])
def test_layers_that_a_partial_state_lacks_begin_with_the_weights_that_come(write, order):
    """As where a checkpoint's body gets a fresh head."""
    body, optimizer, controller = attached(GUESTS["compact"], net()[:1])
    for step in range(6):
        optimizer.zero_grad()
        loss = body(batch(step)[0]).square().mean()
        loss.backward()
        controller.observe(loss)
        optimizer.step()
    state = controller.state_dict()
    head = source()[2]
    model, _, resumed = attached(GUESTS["compact"], net(1))

    def load_head():
        if write == "load_state_dict":
            model[2].load_state_dict(head.state_dict())
        else:
            write(model[2], list(head.parameters()))

    for do in [lambda: resumed.load_state_dict(state, strict=False), load_head][::order]:
        do()
    model(batch(0)[0])
    assert resumed.precisions["0.weight"] == controller.precisions["0.weight"]
    assert torch.equal(resumed.masters["0.weight"], controller.masters["0.weight"])
    assert torch.equal(resumed.masters["2.weight"], head.weight)
    assert resumed.precisions["2.weight"].maximum >= head.weight.abs().max() / 2


@pytest.mark.parametrize("scale", [40.0, 1e-3])
@pytest.mark.parametrize("name", ["learned widths", "LSQ", "LSQ by channel"])
def test_learned_formats_that_no_longer_fit_are_named(name, scale):
    model, optimizer, controller = attached(LEARNED[name], net())
    train(model, optimizer, 2)
    before = repr(controller.formats)
    copied(model, list(source(scale=scale).parameters()))
    with pytest.warns(UserWarning, match=r"formats of 0\.weight.* still fit the earlier weights"):
        model(batch(0)[0])
    assert repr(controller.formats) == before


@pytest.mark.parametrize(("bits", "scale"), [(2, 8.0), (4, 20.0), (4, 100.0), (8, 80.0)])
def test_layers_of_lsq_that_are_initialised_anew_in_training_are_named(bits, scale):
    """All but the third lose half to three quarters of their energy, which was too little to be named."""
    model, optimizer, _ = attached(learner(learned.attach_lsq, weight_bits=bits), net())
    train(model, optimizer, 3)
    with torch.no_grad():
        model[0].weight.copy_(scale * net(7)[0].weight)
    with pytest.warns(UserWarning, match=r"formats of 0\.weight still fit the earlier weights"):
        model(batch(0)[0])


def test_words_of_one_bit_are_not_named():
    model, optimizer, _ = attached(learner(learned.attach_lsq, weight_bits=1), net())
    train(model, optimizer, 3)
    with torch.no_grad():
        model[0].weight[:2] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(batch(0)[0])


def decay(p):
    p.mul_(0.9)


def mask(p):
    p.mul_(torch.arange(p.numel()).view_as(p) % 2)


def noise(p):
    p.add_(0.1 * p.std() * torch.randn(p.shape))


@pytest.mark.parametrize("write", [decay, mask, noise])
@pytest.mark.parametrize("name", LEARNED)
def test_learned_formats_that_fit_what_was_written_are_not_named(name, write):
    model, optimizer, _ = attached(LEARNED[name], net())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(4):
            train(model, optimizer, 1, step)
            with torch.no_grad():
                write(model[0].weight)
        model(batch(0)[0])


def test_calibrated_activations_stay_and_are_named():
    attach = learner(learned.attach_lsq, calibration=[batch(0)[0]], weight_bits=3, activation_bits=3)
    model, _, controller = attached(attach, net())
    copied(model, list(source().parameters()))
    with pytest.warns(UserWarning, match=r"formats of 0\.input.* still fit the earlier weights"):
        model(batch(0)[0])
    model, _, controller = attached(attach, net())
    assert controller.activation_precisions
