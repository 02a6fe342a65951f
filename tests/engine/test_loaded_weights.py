"""Weights that are loaded after attaching: their formats are those that they would have had from the beginning."""

import copy
import warnings

import numpy as np
import pytest
import torch

import adapt
from adapt import learned
from tests.training import CLIMBING, RESTLESS, batch, copies, net, train

POLICIES = {
    "paper": RESTLESS,
    "compact": adapt.AdaPT.compact(),
    "fixed": adapt.Fixed(adapt.Precision(8, 5)),
    "muppet": CLIMBING,
}


def large(seed=5):
    """Weights far outside of the formats that the usual initialisation gets."""
    model = net(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(40.0)
    return model.state_dict()


def attached(policy, seed=0, **options):
    model = net(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    return model, optimizer, adapt.attach(optimizer, model, policy, rounding="nearest", **options)


@pytest.mark.covering(1)
@pytest.mark.parametrize("steps", [0, 3, 20])
@pytest.mark.parametrize("name", POLICIES)
def test_a_run_that_was_attached_first_has_the_formats_of_one_that_was_loaded_first(name, steps):
    model, optimizer, controller = attached(POLICIES[name], quantize_biases=True)
    train(model, optimizer, steps, controller=controller)
    reached = {form.word_length for form in controller.precisions.values()}
    model.load_state_dict(large())
    if name == "muppet" and steps == 20:
        # Its formats follow the values by themselves, and its word lengths belong to the run.
        assert {form.word_length for form in controller.precisions.values()} == reached != {8}
        return
    other = net(1)
    other.load_state_dict(large())
    other_optimizer = torch.optim.SGD(other.parameters(), lr=0.01, momentum=0.9)
    expected = adapt.attach(other_optimizer, other, POLICIES[name], rounding="nearest", quantize_biases=True)
    assert controller.formats == expected.formats
    for left, right in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(left, right)
    assert controller.step == steps
    assert len(controller.trace) == steps
    train(model, optimizer, 3, steps, controller=controller)


def test_only_the_layers_that_were_loaded_begin_anew():
    model, optimizer, controller = attached(adapt.AdaPT(lookback=(6, 6)))
    train(model, optimizer, 3, controller=controller)
    before = controller.precisions
    weights = large()
    model[2].load_state_dict({"weight": weights["2.weight"], "bias": weights["2.bias"]})
    assert controller.precisions["0.weight"] == before["0.weight"]
    train(model, optimizer, 3, 3, controller=controller)
    assert controller.state_dict()["state"]["gradients"].tolist() == [0, 3]


def test_a_trace_that_was_going_on_keeps_what_it_had():
    model, optimizer, controller = attached(adapt.AdaPT.compact())
    train(model, optimizer, 4, controller=controller)
    words = controller.trace.word_length.copy(), controller.trace.fraction_length.copy()
    model.load_state_dict(large())
    train(model, optimizer, 2, 4, controller=controller)
    np.testing.assert_array_equal(controller.trace.word_length[:4], words[0])
    np.testing.assert_array_equal(controller.trace.fraction_length[:4], words[1])


@pytest.mark.parametrize("order", [("model", "optimizer"), ("optimizer", "model")])
def test_formats_that_came_with_the_state_stay(order):
    model, optimizer, controller = attached(adapt.AdaPT.compact())
    model.load_state_dict(large())
    train(model, optimizer, 5, controller=controller)
    states = {"model": copies(model.state_dict()), "optimizer": copy.deepcopy(optimizer.state_dict())}
    other, other_optimizer, resumed = attached(adapt.AdaPT.compact(), seed=1)
    for part in order:
        {"model": other, "optimizer": other_optimizer}[part].load_state_dict(states[part])
    assert resumed.formats == controller.formats
    assert all(torch.equal(resumed.masters[name], master) for name, master in controller.masters.items())
    for run in ((model, optimizer, controller), (other, other_optimizer, resumed)):
        train(run[0], run[1], 3, 5, controller=run[2])
    assert all(torch.equal(resumed.masters[name], master) for name, master in controller.masters.items())


@pytest.mark.parametrize("order", [("model", "optimizer"), ("optimizer", "model")])
def test_a_plain_checkpoint_in_any_order_fits_its_weights(order):
    plain = net(3)
    plain.load_state_dict(large())
    plain_optimizer = torch.optim.SGD(plain.parameters(), lr=0.01, momentum=0.9)
    train(plain, plain_optimizer, 1)
    states = {"model": plain.state_dict(), "optimizer": plain_optimizer.state_dict()}
    model, optimizer, controller = attached(adapt.AdaPT.compact())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for part in order:
            {"model": model, "optimizer": optimizer}[part].load_state_dict(states[part])
    assert any("only weights that are loaded into the module get new formats" in str(w.message) for w in caught)
    expected = adapt.attach(
        torch.optim.SGD(plain.parameters(), lr=0.01), plain, adapt.AdaPT.compact(), rounding="nearest"
    )
    assert controller.formats == expected.formats
    assert all(torch.equal(controller.masters[name], master) for name, master in expected.masters.items())


def test_weights_that_are_not_finite_do_not_choose_formats():
    model, _, controller = attached(adapt.AdaPT.compact())
    before = controller.precisions
    weights = large()
    weights["0.weight"][0, 0] = float("nan")
    model.load_state_dict(weights)
    assert controller.precisions["0.weight"] == before["0.weight"]
    assert controller.precisions["2.weight"] != before["2.weight"]


def test_loading_that_is_cut_short_is_made_up_for_in_the_next_pass():
    model, _, controller = attached(adapt.AdaPT.compact())
    before = controller.precisions

    def interrupt(*_):
        raise KeyboardInterrupt

    handle = model[1].register_load_state_dict_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        model.load_state_dict(large())
    handle.remove()
    model(batch(0)[0])
    assert controller.precisions["0.weight"] != before["0.weight"]
    assert controller.precisions["2.weight"] == before["2.weight"]


@pytest.mark.parametrize("attach", [adapt.attach, None])
def test_parameters_that_loading_replaces_are_named(attach):
    """As in plain torch, whose optimizer then updates parameters that no module has."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    if attach:
        adapt.attach(optimizer, model, adapt.AdaPT.compact())
    else:
        learned.attach_aqt(optimizer, model, steps=5)
    with pytest.warns(UserWarning, match=r"2\.weight is another parameter now.*load without assign"):
        model.load_state_dict(large(), assign=True)


LEARNED = {
    "learned widths": lambda optimizer, model: learned.attach(
        optimizer, model, weight_budget=learned.Budget(bits=4), phases=learned.Phases(4, 16, 4)
    ),
    "LSQ": lambda optimizer, model: learned.attach_lsq(optimizer, model, weight_bits=3),
    "LSQ with activations": lambda optimizer, model: learned.attach_lsq(
        optimizer, model, [batch(0)[0]], weight_bits=3, activation_bits=3
    ),
    "AQT": lambda optimizer, model: learned.attach_aqt(optimizer, model, steps=10),
}


def learning(attach, weights=None):
    model = net(0 if weights is None else 1)
    if weights is not None:
        model.load_state_dict(weights)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    return model, optimizer, attach(optimizer, model)


@pytest.mark.parametrize("name", ["learned widths", "LSQ", "AQT"])
def test_learned_formats_begin_with_weights_that_come_before_the_first_step(name, recwarn):
    model, optimizer, learner = learning(LEARNED[name])
    model.load_state_dict(large())
    other, other_optimizer, expected = learning(LEARNED[name], large())
    assert not recwarn
    assert repr(learner.formats) == repr(expected.formats)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))
    train(model, optimizer, 3)
    train(other, other_optimizer, 3)
    assert all(torch.equal(learner.masters[name], master) for name, master in expected.masters.items())


@pytest.mark.parametrize("use", ["training", "evaluation"])
@pytest.mark.parametrize("name", ["learned widths", "LSQ"])
def test_learned_formats_stay_once_they_have_learned_and_a_warning_says_so(name, use):
    model, optimizer, learner = learning(LEARNED[name])
    train(model, optimizer, 2)
    before = repr(learner.formats)
    model.load_state_dict(large())
    model.train(use == "training")
    with pytest.warns(UserWarning, match=r"formats of 0\.weight.* still fit the earlier weights: load the weights"):
        model(batch(0)[0])
    assert repr(learner.formats) == before


@pytest.mark.parametrize(("name", "steps"), [("LSQ with activations", 0), ("AQT", 4)])
def test_calibrated_activations_stay_and_a_warning_says_so(name, steps):
    model, optimizer, learner = learning(LEARNED[name])
    train(model, optimizer, steps)
    before = repr(learner.activation_precisions)
    model.load_state_dict(large())
    with pytest.warns(UserWarning, match=r"formats of 0\.input.* still fit the earlier weights"):
        model(batch(0)[0])
    assert repr(learner.activation_precisions) == before


@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize("order", [1, -1])
def test_resuming_learned_formats_warns_of_nothing(name, order):
    model, optimizer, _ = learning(LEARNED[name])
    train(model, optimizer, 4)
    saved = copy.deepcopy([model.state_dict(), optimizer.state_dict()])
    model, optimizer, _ = learning(LEARNED[name])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for part, state in list(zip((model, optimizer), saved, strict=True))[::order]:
            part.load_state_dict(state)
        train(model, optimizer, 1)


def test_weights_that_are_not_finite_do_not_choose_learned_formats():
    model, _, learner = learning(LEARNED["LSQ"])
    before = repr(learner.formats)
    weights = large()
    weights["0.weight"][0, 0] = float("nan")
    model.load_state_dict(weights)
    with pytest.warns(UserWarning, match="still fit the earlier weights"):
        model(batch(0)[0])
    assert repr(learner.formats) == before
