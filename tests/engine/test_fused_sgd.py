"""SGD's update taken over: the run is the one that torch's own update makes, as far as torch itself knows its bits."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import adapt
from adapt.adaptive.masters import FixedPointMasters
from tests.training import CLIMBING, RESTLESS, copies, interrupted_update, loss_of, net, train

# Powers of two, so that products are exact and it does not matter which of them torch fuses with a sum.
EXACT = {
    "plain": {"lr": 2**-4},
    "momentum": {"lr": 2**-5, "momentum": 0.5},
    "dampened": {"lr": 2**-4, "momentum": 0.5, "dampening": 0.75, "weight_decay": 2**-9},
    "nesterov": {"lr": 2**-5, "momentum": 0.5, "nesterov": True, "weight_decay": 2**-9},
    "a tensor as rate": {"lr": torch.tensor(2**-4), "momentum": 0.5, "foreach": True},
    "fused": {"lr": 2**-5, "momentum": 0.5, "fused": True},
}


@pytest.fixture
def taken(monkeypatch):
    """The names of the layers of every update that was taken over."""
    calls, descend = [], FixedPointMasters.descend

    def spy(self, *args):
        calls.append(self.names)
        descend(self, *args)

    monkeypatch.setattr(FixedPointMasters, "descend", spy)
    return calls


def leave_to_torch(optimizer):
    """A hook of someone else's between the controller and the update."""
    return optimizer.register_step_pre_hook(lambda *_: None)


def run(options, *, torchs=False, steps=12, policy=RESTLESS, groups=False, **settings):
    """A network after some steps, its optimizer and its controller; with `torchs` the update is torch's own."""
    model = net()
    parameters = list(model.parameters())
    if groups:
        parameters = [{"params": parameters[:1], "lr": 2**-3, "momentum": 0}, {"params": parameters[1:]}]
    optimizer = torch.optim.SGD(parameters, **options)
    controller = adapt.attach(optimizer, model, policy, **settings)
    if torchs:
        leave_to_torch(optimizer)
    train(model, optimizer, steps, controller=controller)
    return model, optimizer, controller


def assert_same(one, other):
    (model, optimizer, controller), (twin, twins, theirs) = one, other
    for left, right in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(left, right)
    assert controller.precisions == theirs.precisions
    for name, master in controller.masters.items():
        assert torch.equal(master, theirs.masters[name])
    states, expected_states = optimizer.state_dict()["state"], twins.state_dict()["state"]
    assert list(states) == list(expected_states)
    for index, state in states.items():
        buffer, expected = state.get("momentum_buffer"), expected_states[index].get("momentum_buffer")
        assert (buffer is None and expected is None) or torch.equal(buffer, expected)
    trace, expected = controller.trace.state_dict(), theirs.trace.state_dict()
    for field, values in trace.items():
        equal = torch.equal(values.nan_to_num(), expected[field].nan_to_num()) if torch.is_tensor(values) else None
        assert values == expected[field] if equal is None else equal, field


@pytest.mark.covering(1)
@pytest.mark.parametrize("groups", [False, True])
@pytest.mark.parametrize("name", EXACT)
def test_the_run_is_that_of_torchs_update_to_the_bit(name, groups, taken):
    settings = {"l1": 2**-10, "l2": 2**-9, "quantize_biases": True, "groups": groups}
    own = run(EXACT[name], **settings)
    assert len(taken) == 12
    torchs = run(EXACT[name], torchs=True, **settings)
    assert len(taken) == 12, "what another hook may look at is torch's"
    assert_same(own, torchs)
    assert own[2].trace.switches().any()


def test_ascent_is_torchs_too(taken):
    options = {"lr": 2**-7, "momentum": 0.5, "maximize": True}
    assert_same(run(options), run(options, torchs=True))
    assert len(taken) == 12


@pytest.mark.parametrize(
    "options", [{"lr": 0.03, "momentum": 0.9, "weight_decay": 1e-3, "nesterov": True}, {"lr": 0.1}]
)
def test_with_any_numbers_the_last_bits_may_differ(options):
    settings = {"policy": adapt.Fixed(adapt.Precision(16, 12)), "rounding": "nearest", "steps": 5}
    own, torchs = run(options, **settings), run(options, torchs=True, **settings)
    for name, master in own[2].masters.items():
        torch.testing.assert_close(master, torchs[2].masters[name], rtol=1e-5, atol=2**-12)


def test_gradients_keep_their_values_and_torch_finds_none_of_the_layers(monkeypatch, taken):
    model, optimizer, controller = run({"lr": 0.05}, steps=1, l1=1e-3)
    loss = loss_of(model, 1)
    loss.backward()
    before, met = {n: p.grad.clone() for n, p in model.named_parameters()}, []
    look = optimizer._init_group

    def spy(group, *lists):
        met.extend(p.grad for p in group["params"])
        return look(group, *lists)

    monkeypatch.setattr(optimizer, "_init_group", spy)
    optimizer.step()
    layers = [name in controller.masters for name, _ in model.named_parameters()]
    assert [gradient is None for gradient in met] == layers
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, before[name])


def test_torchs_own_sgd_goes_on_from_the_state(taken):
    model, optimizer, controller = run({"lr": 2**-5, "momentum": 0.5})
    controller.detach("masters")
    twin = net()
    twin.load_state_dict(model.state_dict())
    plain = torch.optim.SGD(twin.parameters(), lr=2**-5, momentum=0.5)
    state = copy.deepcopy(optimizer.state_dict())
    plain.load_state_dict({key: state[key] for key in ("state", "param_groups")})
    for trained, by in ((model, optimizer), (twin, plain)):
        train(trained, by, 3, 12)
    for left, right in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(left, right)


def test_a_schedule_is_followed(taken):
    runs = []
    for torchs in (False, True):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=2**-3, momentum=0.5)
        controller = adapt.attach(optimizer, model, RESTLESS)
        if torchs:
            leave_to_torch(optimizer)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)
        for step in range(8):
            train(model, optimizer, 1, step, controller)
            schedule.step()
        runs.append((model, optimizer, controller))
    assert_same(*runs)
    assert len(taken) == 8


def test_layers_without_a_gradient_stay_and_begin_later(taken):
    runs = []
    for torchs in (False, True):
        model, optimizer, controller = run({"lr": 2**-4, "momentum": 0.5}, torchs=torchs, steps=0)
        model[0].requires_grad_(False)
        masters = copies(controller.masters)
        train(model, optimizer, 3, controller=controller)
        assert torch.equal(controller.masters["0.weight"], masters["0.weight"])
        assert not torch.equal(controller.masters["2.weight"], masters["2.weight"])
        assert model[0].weight not in optimizer.state
        model[0].requires_grad_(True)
        train(model, optimizer, 4, 3, controller)
        runs.append((model, optimizer, controller))
    assert_same(*runs)


@pytest.mark.filterwarnings("ignore:the gradient of 0.weight is not finite")
def test_a_gradient_that_is_not_finite_is_zero_to_the_update(taken):
    runs = []
    for torchs in (False, True):
        model, optimizer, controller = run({"lr": 2**-4, "momentum": 0.5}, torchs=torchs, steps=3)
        optimizer.zero_grad()
        loss_of(model, 3).backward()
        model[0].weight.grad[0, 0] = torch.inf
        controller.observe(1.0)
        optimizer.step()
        assert controller.skipped["0.weight"] == 1
        runs.append((model, optimizer, controller))
    assert_same(*runs)


class Derived(torch.optim.SGD):
    """What it makes of a step is not known."""


class Marked(nn.Parameter):
    """What it makes of an operation is not known."""


def buffers_of_another_layout(optimizer):
    for parameter in optimizer.param_groups[0]["params"]:
        if parameter.ndim == 2:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros(parameter.shape[::-1]).t()


@pytest.mark.parametrize(
    ("make", "policy", "prepare"),
    [
        (lambda p: Derived(p, lr=0.05), RESTLESS, None),
        (lambda p: torch.optim.Adam(p), RESTLESS, None),
        (lambda p: torch.optim.SGD(p, lr=torch.tensor(0.05, requires_grad=True), foreach=False), RESTLESS, None),
        (lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9), RESTLESS, buffers_of_another_layout),
        (lambda p: torch.optim.SGD(p, lr=0.05), CLIMBING, None),
    ],
    ids=["a derived class", "Adam", "a learned rate", "buffers of another layout", "block floating point"],
)
def test_all_else_is_left_to_the_optimizer(make, policy, prepare, taken):
    model = net()
    optimizer = make(model.parameters())
    controller = adapt.attach(optimizer, model, policy)
    if prepare is not None:
        prepare(optimizer)
    before = copies(controller.masters)
    train(model, optimizer, 2, controller=controller)
    assert not taken
    assert all(not torch.equal(master, before[name]) for name, master in controller.masters.items())


def test_parameters_of_another_class_are_left_to_the_optimizer(taken):
    model = net()
    model[0].weight = Marked(model[0].weight.detach())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    train(model, optimizer, 2, controller=adapt.attach(optimizer, model, RESTLESS))
    assert not taken


def ignore(*_):
    pass


def earlier(register):
    """A model, its optimizer and its controller, with a hook from before it was attached."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    register(optimizer)
    return model, optimizer, adapt.attach(optimizer, model, RESTLESS)


def later(register):
    """The same with a hook from after it was attached."""
    model, optimizer, controller = run({"lr": 0.05}, steps=0)
    register(optimizer)
    return model, optimizer, controller


@pytest.mark.parametrize(
    ("when", "register", "watches"),
    [
        (earlier, lambda o: o.register_step_pre_hook(ignore), False),
        (earlier, lambda o: o.register_step_post_hook(ignore), True),
        (later, lambda o: o.register_step_pre_hook(ignore), True),
        (later, lambda o: o.register_step_post_hook(ignore), False),
    ],
    ids=["before, early", "after, early", "before, late", "after, late"],
)
def test_hooks_around_the_update_leave_it_to_torch(when, register, watches, taken):
    model, optimizer, controller = when(register)
    train(model, optimizer, 2, controller=controller)
    assert len(taken) == (0 if watches else 2)


@pytest.mark.parametrize("register", [register_optimizer_step_pre_hook, register_optimizer_step_post_hook])
def test_hooks_on_all_optimizers_see_what_they_always_saw(register, taken):
    seen = []
    handle = register(
        lambda optimizer, *_: seen.append([p.grad is not None for p in optimizer.param_groups[0]["params"]])
    )
    try:
        run({"lr": 0.05}, steps=2)
    finally:
        handle.remove()
    assert len(taken) == len(seen) == 2
    assert all(map(all, seen))


def test_parameters_may_move_to_another_group(taken):
    model = net()
    first, second = list(model[0].parameters()), list(model[2].parameters())
    optimizer = torch.optim.SGD([{"params": first}, {"params": second, "lr": 0.0}], lr=0.05)
    controller = adapt.attach(optimizer, model, RESTLESS)

    def moved(step):
        before = copies(controller.masters)
        train(model, optimizer, 1, step, controller)
        return [name for name, master in controller.masters.items() if not torch.equal(master, before[name])]

    assert moved(0) == ["0.weight"]
    optimizer.param_groups.reverse()
    assert moved(1) == ["0.weight"]
    groups = optimizer.param_groups
    groups[0]["params"], groups[1]["params"] = groups[1]["params"], groups[0]["params"]
    assert moved(2) == ["2.weight"]
    assert len(taken) == 3


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_a_layer_that_left_the_optimizer_stays(kind):
    model = net()
    optimizer = kind([{"params": model[0].parameters()}, {"params": model[2].parameters()}], lr=0.05)
    controller = adapt.attach(optimizer, model, RESTLESS)
    train(model, optimizer, 2, controller=controller)
    optimizer.param_groups.pop(0)
    before = copies(controller.masters)
    train(model, optimizer, 2, 2, controller)
    assert torch.equal(controller.masters["0.weight"], before["0.weight"])
    assert not torch.equal(controller.masters["2.weight"], before["2.weight"])


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")
def test_what_is_in_a_group_twice_is_updated_twice_by_torch(taken):
    model = net()
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD([*parameters, parameters[0]], lr=0.05)
    train(model, optimizer, 1, controller=adapt.attach(optimizer, model, RESTLESS))
    assert not taken


def test_detaching_within_a_closure_leaves_the_masters_and_the_gradients(taken):
    model, optimizer, controller = run({"lr": 2**-4}, steps=2)

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, 2)
        loss.backward()
        controller.detach("masters")
        return loss

    before = copies(controller.masters)
    optimizer.step(closure)
    assert len(taken) == 2
    for name, master in before.items():
        weight = model.get_parameter(name)
        assert torch.equal(weight, master - 2**-4 * weight.grad)


@pytest.mark.long
def test_a_compiled_step_is_the_same_step(taken):
    runs = []
    for compiled in (False, True):
        model, optimizer, controller = run({"lr": 2**-4, "momentum": 0.5}, steps=0)
        step = torch.compile(optimizer.step) if compiled else optimizer.step
        for index in range(6):
            optimizer.zero_grad()
            loss = loss_of(model, index)
            loss.backward()
            controller.observe(loss)
            step()
        runs.append((model, optimizer, controller))
    assert_same(*runs)
    assert runs[0][2].trace.switches().any()


@pytest.mark.filterwarnings("ignore:the gradient of 0.weight is not finite")
def test_a_scaler_that_skips_a_fused_step_skips_it_here(taken):
    model, optimizer, controller = run({"lr": 0.05, "momentum": 0.9, "fused": True}, steps=2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
    before = copies(controller.masters)
    optimizer.zero_grad()
    scaler.scale(loss_of(model, 2)).backward()
    model[0].weight.grad[0, 0] = torch.inf
    scaler.step(optimizer)
    scaler.update()
    assert controller.skipped["0.weight"] == 1
    assert all(torch.equal(master, before[name]) for name, master in controller.masters.items())
    assert len(taken) == 2


def test_an_update_of_the_rest_that_fails_leaves_the_layers_updated_and_on_their_grids(taken):
    model, optimizer, controller = run({"lr": 0.05, "momentum": 0.9}, steps=3)
    loss_of(model, 3).backward()
    controller.observe(1.0)

    with interrupted_update():
        optimizer.step()
    masters = copies(controller.masters)
    for name, precision in controller.precisions.items():
        weight = model.get_parameter(name)
        assert torch.equal(weight, adapt.quantize(weight, precision))
    # The same gradients do not move the layers twice.
    optimizer.step()
    assert all(torch.equal(master, masters[name]) for name, master in controller.masters.items())
    # Nor do they come back, whoever makes the next update.
    leave_to_torch(optimizer)
    train(model, optimizer, 1, 4, controller)
    assert not any(torch.equal(master, masters[name]) for name, master in controller.masters.items())
    optimizer.zero_grad()
    loss_of(model, 5).backward()
    fresh = [p.grad.clone() for p in model.parameters()]
    optimizer.step()
    for parameter, gradient in zip(model.parameters(), fresh, strict=True):
        assert torch.equal(parameter.grad, gradient) or parameter.ndim > 1
