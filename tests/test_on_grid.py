"""In every way of training, every forward pass sees weights on the grid of the layer's present precision."""

import warnings

import pytest
import torch
from torch import nn

import adapt
from tests.training import CLIMBING, RESTLESS, Witness, batch, loss_of, net, train

STEPS = 12

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05),
    "SGD with momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "SGD foreach": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, foreach=True),
    "SGD fused": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, fused=True),
    "SGD with a tensor as rate": lambda p: torch.optim.SGD(p, lr=torch.tensor(0.05)),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "Adam foreach": lambda p: torch.optim.Adam(p, lr=0.01, foreach=True),
    "Adam fused": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01),
    "AdamW foreach": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
    "AdamW fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "RMSprop foreach": lambda p: torch.optim.RMSprop(p, lr=0.01, foreach=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
    "Adagrad fused": lambda p: torch.optim.Adagrad(p, lr=0.05, fused=True),
    "Adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "averaged SGD": lambda p: torch.optim.ASGD(p, lr=0.05),
}


def watched(optimizer, model, policy=RESTLESS, **options):
    controller = adapt.attach(optimizer, model, policy, **options)
    return controller, Witness(model, controller)


def assert_trained(controller, witness, before, passes=STEPS):
    """Every forward pass on the grid, every layer's master moved, and some format too."""
    witness.check(passes)
    for name, master in controller.masters.items():
        assert not torch.equal(master, before[name]), f"{name} did not learn"
    assert controller.trace.switches().any(), "no format moved, which would prove little"


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.covering(1)
@pytest.mark.parametrize("with_closure", [False, True], ids=["plain loop", "closure"])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_every_optimizer(make, with_closure):
    model = net()
    before = weights(model)
    optimizer = make(model.parameters())
    controller, witness = watched(optimizer, model)
    for step in range(STEPS):

        def closure(step=step):
            optimizer.zero_grad()
            loss = loss_of(model, step)
            loss.backward()
            return loss

        if with_closure:
            assert isinstance(optimizer.step(closure), torch.Tensor)
        else:
            controller.observe(closure())
            optimizer.step()
    assert_trained(controller, witness, before)


@pytest.mark.covering(1)
@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
@pytest.mark.parametrize(
    "policy", [RESTLESS, adapt.Fixed(adapt.Precision(4, 3)), CLIMBING], ids=["AdaPT", "Fixed", "MuPPET"]
)
def test_both_roundings_and_evaluation_in_between(policy, rounding):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    controller, witness = watched(optimizer, model, policy, rounding=rounding)
    for step in range(STEPS):
        train(model, optimizer, 1, step, controller)
        model.eval()
        with torch.no_grad() if step % 2 else torch.inference_mode():
            model(batch(step)[0])
        model.train()
    witness.check(2 * STEPS)


def test_swapped_optimizer_without_a_loss():
    model = net()
    optimizer = adapt.ASGD(model, lr=0.05, momentum=0.9, policy=RESTLESS)
    witness = Witness(model, optimizer.controller)
    before = weights(model)
    with pytest.warns(UserWarning, match="never saw the loss"):
        train(model, optimizer, STEPS)
    assert_trained(optimizer.controller, witness, before)


def test_several_parameter_groups():
    model = net()
    groups = [{"params": model[0].parameters(), "lr": 0.01}, {"params": model[2].parameters(), "lr": 0.1}]
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    before = weights(model)
    controller, witness = watched(optimizer, model)
    train(model, optimizer, STEPS, controller=controller)
    assert_trained(controller, witness, before)


def test_named_parameters_in_the_optimizer():
    model = net()
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.05)
    before = weights(model)
    controller, witness = watched(optimizer, model)
    train(model, optimizer, STEPS, controller=controller)
    assert_trained(controller, witness, before)


def run(model, inputs, whole):
    return model(inputs) if whole else model[2](model[1](model[0](inputs)))


CALLS = pytest.mark.parametrize("whole", [True, False], ids=["called whole", "called part by part"])


@CALLS
@pytest.mark.parametrize("first_mode", [True, False], ids=["trained first", "evaluated first"])
def test_group_added_in_mid_run(whole, first_mode):
    model = net()
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.05, momentum=0.9)
    controller, witness = watched(optimizer, model)
    assert list(controller.precisions) == ["2.weight"]
    for step in range(STEPS):
        inputs, targets = batch(step)
        if step == 5:
            optimizer.add_param_group({"params": model[0].parameters(), "lr": 0.1})
            run(model.train(first_mode), inputs, whole)
            assert list(controller.precisions) == ["2.weight", "0.weight"]
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(run(model.train(), inputs, whole), targets)
        loss.backward()
        controller.observe(loss)
        optimizer.step()
    witness.check(STEPS)
    trace = controller.trace
    assert trace.layers == ("2.weight", "0.weight")
    assert (trace.word_length[:5, 1] == 32).all()
    assert (trace.word_length[5, 1] == 8).all()


@CALLS
@pytest.mark.parametrize("first_mode", [True, False], ids=["trained first", "evaluated first"])
def test_frozen_layers_join_when_they_are_unfrozen(whole, first_mode):
    model = net()
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    frozen = model[0].weight.clone()
    controller, witness = watched(optimizer, model)
    train(model, optimizer, 5, controller=controller)
    assert list(controller.precisions) == ["2.weight"]
    assert torch.equal(model[0].weight, frozen)
    model[0].requires_grad_(True)
    for step in range(5, STEPS):
        inputs, targets = batch(step)
        if step == 5:
            run(model.train(first_mode), inputs, whole)
            assert set(controller.precisions) == {"0.weight", "2.weight"}
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(run(model.train(), inputs, whole), targets)
        loss.backward()
        controller.observe(loss)
        optimizer.step()
    assert not torch.equal(controller.masters["0.weight"], frozen)
    witness.check(STEPS)


def test_layer_frozen_in_mid_run_stays_a_layer_and_stands_still():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    controller, witness = watched(optimizer, model)
    train(model, optimizer, 4, controller=controller)
    model[0].weight.requires_grad_(False)
    master = controller.masters["0.weight"].clone()
    train(model, optimizer, 8, 4, controller)
    assert torch.equal(controller.masters["0.weight"], master)
    witness.check(STEPS)


class Branches(nn.Module):
    """Takes one of two layers in turn, so that the other gets no gradient."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.unused = nn.Linear(6, 3), nn.Linear(6, 3), nn.Linear(6, 3)
        self.turn = 0

    def forward(self, inputs):
        self.turn += 1
        return (self.left if self.turn % 3 else self.right)(inputs)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_layers_without_a_gradient_in_some_steps(set_to_none):
    torch.manual_seed(0)
    model = Branches()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    controller, witness = watched(optimizer, model)
    unused = controller.masters["unused.weight"].clone()
    for step in range(2 * STEPS):
        optimizer.zero_grad(set_to_none=set_to_none)
        loss = loss_of(model, step)
        loss.backward()
        controller.observe(loss)
        optimizer.step()
    assert torch.equal(controller.masters["unused.weight"], unused)
    assert controller.precisions["unused.weight"] == RESTLESS.initial
    witness.check(2 * STEPS)


class Tied(nn.Module):
    """A word model whose decoder is its embedding."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 5)
        self.decoder = nn.Linear(5, 7, bias=False)
        self.decoder.weight = self.embedding.weight

    def forward(self, words):
        return self.decoder(torch.tanh(self.embedding(words)))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.out = nn.Linear(8, 7)
        self.embedding = nn.Embedding(7, 8)

    def forward(self, words):
        values = self.embedding(words)
        return self.out(self.attention(values, values, values)[0])


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.embedding, self.cell, self.out = nn.Embedding(7, 5), kind(5, 6, num_layers=2), nn.Linear(6, 7)

    def forward(self, words):
        return self.out(self.cell(self.embedding(words))[0])


class Images(nn.Module):
    """Down by a convolution and up by a transposed one."""

    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.up = nn.ConvTranspose2d(4, 7, 2, stride=2)

    def forward(self, words):
        pictures = torch.sin(words.float().unsqueeze(-1) * torch.arange(1, 9)).reshape(-1, 2, 4, 4)
        return self.up(self.norm(self.down(pictures)).relu()).flatten(2).transpose(1, 2)[:, :4]


ARCHITECTURES = {
    "tied weights": Tied,
    "attention": Attention,
    "GRU": lambda: Recurrent(nn.GRU),
    "LSTM": lambda: Recurrent(nn.LSTM),
    "transposed convolution": Images,
    "channels last": lambda: Images().to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("make", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_every_kind_of_layer(make):
    torch.manual_seed(0)
    model = make()
    before = weights(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    controller, witness = watched(optimizer, model)
    assert set(controller.precisions) == {name for name, p in model.named_parameters() if p.ndim >= 2}
    for step in range(STEPS):
        words = torch.randint(7, (4, 4), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(words).reshape(-1, 7), words.roll(1).reshape(-1))
        loss.backward()
        controller.observe(loss)
        optimizer.step()
        model.eval()
        model(words)
        model.train()
    assert_trained(controller, witness, before, 2 * STEPS)
    if make is Tied:
        assert list(controller.precisions) == ["embedding.weight"]


@pytest.mark.covering(1)
@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_accumulated_gradients(momentum, set_to_none):
    model = net()
    before = weights(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=momentum)
    controller, witness = watched(optimizer, model)
    for step in range(STEPS):
        optimizer.zero_grad(set_to_none=set_to_none)
        for micro in range(3):
            loss = loss_of(model, 3 * step + micro)
            (loss / 3).backward()
            controller.observe(loss)
        optimizer.step()
    assert_trained(controller, witness, before, 3 * STEPS)
    assert controller.step == STEPS


@pytest.mark.covering(1)
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("unscale", [False, True], ids=["unscaled by step", "unscaled and clipped"])
def test_gradient_scaler_with_a_step_that_overflows(fused, unscale):
    model = net()
    before = weights(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, fused=fused)
    controller, witness = watched(optimizer, model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=4)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of(model, step)
        scaler.scale(loss).backward()
        if step == 3:
            model[0].weight.grad[0, 0] = torch.inf
        if unscale:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        masters = {name: master.clone() for name, master in controller.masters.items()}
        controller.observe(loss)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scaler.step(optimizer)
        scaler.update()
        if step == 3:
            for name, master in controller.masters.items():
                assert torch.equal(master, masters[name]), "an overflowing step moved the masters"
    assert scaler.get_scale() != 2.0**10
    assert_trained(controller, witness, before)


@pytest.mark.parametrize("fused", [False, True])
def test_scaled_gradients_make_the_same_run(fused):
    """A power of two as scale changes no bit: what the controller sees must be the true gradients."""
    runs = []
    for scaled in (False, True):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, fused=fused)
        controller = adapt.attach(optimizer, model, RESTLESS, l1=1e-3, l2=1e-2)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, enabled=scaled)
        for step in range(STEPS):
            optimizer.zero_grad()
            loss = loss_of(model, step)
            scaler.scale(loss).backward()
            controller.observe(loss)
            scaler.step(optimizer)
            scaler.update()
        runs.append((weights(model), controller.trace.diversity))
    for name, weight in runs[0][0].items():
        assert torch.equal(weight, runs[1][0][name]), name
    assert (runs[0][1] == runs[1][1]).all()


def test_autocast_to_bfloat16():
    model = net()
    before = weights(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    controller, witness = watched(optimizer, model)
    for step in range(STEPS):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, step)
        loss.backward()
        controller.observe(loss)
        optimizer.step()
    assert_trained(controller, witness, before)


SCHEDULERS = {
    "on a plateau": lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=1),
    "lambda": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 0.9**step),
    "one cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=STEPS),
    "warm restarts": lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 4),
}


@pytest.mark.covering(1)
@pytest.mark.parametrize("first", ["scheduler", "controller"])
@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS)
def test_learning_rate_schedulers(make, first):
    model = net()
    before = weights(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    if first == "scheduler":
        scheduler = make(optimizer)
        controller, witness = watched(optimizer, model)
    else:
        controller, witness = watched(optimizer, model)
        scheduler = make(optimizer)
    with warnings.catch_warnings():
        # A scheduler that believes that no optimizer step came before it would say so.
        warnings.simplefilter("error")
        for step in range(STEPS):
            optimizer.zero_grad()
            loss = loss_of(model, step)
            loss.backward()
            controller.observe(loss)
            optimizer.step()
            is_plateau = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
            scheduler.step(loss.detach()) if is_plateau else scheduler.step()
    assert_trained(controller, witness, before)


def test_clipping_between_backward_and_step():
    model = net()
    before = weights(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    controller, witness = watched(optimizer, model)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of(model, step)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        nn.utils.clip_grad_value_(model.parameters(), 0.05)
        controller.observe(loss)
        optimizer.step()
    assert_trained(controller, witness, before)


def test_gradient_checkpointing():
    model = net()
    before = weights(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    controller, witness = watched(optimizer, model)
    for step in range(STEPS):
        inputs, targets = batch(step)
        optimizer.zero_grad()
        outputs = torch.utils.checkpoint.checkpoint(model, inputs, use_reentrant=False)
        loss = nn.functional.cross_entropy(outputs, targets)
        loss.backward()
        controller.observe(loss)
        optimizer.step()
    assert_trained(controller, witness, before, 2 * STEPS)


def test_two_optimizers_on_one_network():
    model = net()
    before = weights(model)
    first = torch.optim.SGD(model[0].parameters(), lr=0.05)
    second = torch.optim.Adam(model[2].parameters(), lr=0.01)
    controllers = [adapt.attach(first, model, RESTLESS), adapt.attach(second, model, RESTLESS, seed=1)]
    witnesses = [Witness(model, controller) for controller in controllers]
    for step in range(2 * STEPS):
        turn = step % 2
        optimizer, controller = (first, second)[turn], controllers[turn]
        model.zero_grad()
        loss = loss_of(model, step)
        loss.backward()
        controller.observe(loss)
        optimizer.step()
        model.eval()
        model(batch(step)[0])
        model.train()
    for controller, witness in zip(controllers, witnesses, strict=True):
        assert len(controller.precisions) == 1
        assert controller.step == STEPS
        assert_trained(controller, witness, before, 4 * STEPS)


def test_parameters_without_a_module():
    model = net()
    before = weights(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    controller = adapt.attach(optimizer, list(model.parameters()), RESTLESS)
    assert list(controller.precisions) == ["parameter_0", "parameter_2"]
    witness = Witness(model, controller)
    train(model, optimizer, STEPS, controller=controller)
    model.eval()
    with controller.evaluation_weights():
        model(batch(0)[0])
    model.train()
    model(batch(0)[0])
    assert_trained(controller, witness, {"parameter_0": before["0.weight"], "parameter_2": before["2.weight"]})


def test_group_added_without_a_module_joins_with_the_next_step():
    model = net()
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.05)
    controller = adapt.attach(optimizer, list(model[2].parameters()), RESTLESS)
    train(model, optimizer, 3, controller=controller)
    optimizer.add_param_group({"params": model[0].parameters()})
    train(model, optimizer, 1, 3, controller)
    assert list(controller.precisions) == ["parameter_0", "parameter_2"]
    witness = Witness(model, controller)
    train(model, optimizer, 8, 4, controller)
    witness.check(8)


def test_the_witness_sees_what_is_off_the_grid():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    controller, witness = watched(optimizer, model)
    model(batch(0)[0])
    assert not witness.problems
    with controller.master_weights():
        model(batch(0)[0])
    assert len(witness.problems) == 4
    with pytest.raises(AssertionError, match="off the grid"):
        witness.check()
