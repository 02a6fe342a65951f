"""Several features of a training loop at once, and weight averaging in a plain loop."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import adapt
from tests.reliability.test_loading import fingerprint
from tests.training import RESTLESS, is_on_grid, loss_of, net

torch.set_num_threads(1)


def assembled(init=0, **options):
    model = net(init)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return model, optimizer, adapt.attach(optimizer, model, RESTLESS, **options)


def step_once(model, optimizer, controller, step):
    optimizer.zero_grad()
    loss = loss_of(model, step)
    loss.backward()
    controller.observe(loss)
    optimizer.step()


def test_an_average_of_the_masters_is_evaluated_on_the_grid():
    """What the README shows: average within `master_weights()`, round the average in the present formats."""
    model, optimizer, controller = assembled()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    expected = None
    for step in range(12):
        step_once(model, optimizer, controller, step)
        shown = {name: p.detach().clone() for name, p in model.named_parameters()}
        with controller.master_weights():
            average.update_parameters(model)
        assert all(torch.equal(p, shown[name]) for name, p in model.named_parameters())
        now = {name: master.clone() for name, master in controller.masters.items()}
        expected = now if expected is None else {n: e.lerp(now[n], 0.5) for n, e in expected.items()}
    for name, mean in expected.items():
        torch.testing.assert_close(average.module.get_parameter(name), mean)

    deployed = copy.deepcopy(average.module)
    with torch.no_grad():
        for name, precision in controller.precisions.items():
            weight = deployed.get_parameter(name)
            weight.copy_(adapt.quantize(weight, precision))
            assert is_on_grid(weight, precision)
    # The copies' hooks do nothing: neither touches the run that goes on.
    before = fingerprint(controller.state_dict())
    average(torch.zeros(1, 6)), deployed.eval()(torch.zeros(1, 6))
    assert fingerprint(controller.state_dict()) == before
    step_once(model, optimizer, controller, 12)


class Everything:
    """GradScaler with an overflow, unscaling, clipping, accumulation, weight averaging and a schedule."""

    STEPS = 14

    def __init__(self, init=0):
        self.model, self.optimizer, self.controller = assembled(init, l1=1e-4, quantize_biases=True)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=3)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, self.STEPS)
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        self.done = 0

    def parts(self):
        return {
            "model": self.model,
            "optimizer": self.optimizer,
            "scaler": self.scaler,
            "schedule": self.schedule,
            "average": self.average,
        }

    def advance(self):
        self.optimizer.zero_grad()
        for micro in (2 * self.done, 2 * self.done + 1):
            loss = loss_of(self.model, micro)
            self.scaler.scale(loss / 2).backward()
            self.controller.observe(loss)
        if self.done == 6:
            self.model[2].weight.grad[0, 0] = torch.inf
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), 0.5)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the step that was skipped
            self.schedule.step()
        with self.controller.master_weights():
            self.average.update_parameters(self.model)
        self.done += 1

    def outcome(self):
        return fingerprint({name: part.state_dict() for name, part in self.parts().items()})


def test_everything_at_once_resumes_bit_for_bit(tmp_path):
    run, states = Everything(), []
    for _ in range(Everything.STEPS):
        adapt.save({name: part.state_dict() for name, part in run.parts().items()}, tmp_path / f"{run.done}")
        states.append(run.done)
        run.advance()
    assert run.controller.step == Everything.STEPS - 1, "the overflow was no step"
    assert run.controller.trace.switches().any()
    for done in states:
        resumed = Everything(init=1)
        state = adapt.load(tmp_path / f"{done}")
        for name, part in resumed.parts().items():
            part.load_state_dict(state[name])
        resumed.done = done
        while resumed.done < Everything.STEPS:
            resumed.advance()
        assert resumed.outcome() == run.outcome(), done


@pytest.mark.parametrize("view", ["evaluation", "masters"])
@pytest.mark.parametrize("place", ["forward", "update"])
def test_after_an_exception_detaching_leaves_what_was_asked_for(place, view, monkeypatch):
    model, optimizer, controller = assembled()
    for step in range(5):
        step_once(model, optimizer, controller, step)

    def fail(*_, **__):
        raise KeyboardInterrupt

    if place == "forward":
        model[1].register_forward_hook(fail)
    else:
        monkeypatch.setattr(optimizer, "_init_group", fail)
    before = {name: master.clone() for name, master in controller.masters.items()}
    with pytest.raises(KeyboardInterrupt):
        step_once(model, optimizer, controller, 5)
    masters = {name: master.clone() for name, master in controller.masters.items()}
    # SGD's update of the layers comes before that of everything else.
    assert all(torch.equal(master, before[name]) == (place == "forward") for name, master in masters.items())
    controller.detach(view)
    for name, master in masters.items():
        kept = adapt.quantize(master, controller.precisions[name]) if view == "evaluation" else master
        assert torch.equal(model.get_parameter(name), kept)


def test_a_second_run_on_the_same_model_starts_from_what_the_first_left():
    model, optimizer, controller = assembled()
    for step in range(5):
        step_once(model, optimizer, controller, step)
    masters = {name: master.clone() for name, master in controller.masters.items()}
    controller.detach("masters")
    second = adapt.attach(optimizer, model, RESTLESS)
    assert second.step == 0
    assert all(torch.equal(second.masters[name], master) for name, master in masters.items())
    for step in range(5):
        step_once(model, optimizer, second, step)
    assert len(second.trace) == 5
