"""Whose steps masters can follow: wrappers, optimizers without hooks, and those that differentiate twice.

The classes below have the structure of those in Accelerate, MMEngine, timm and pytorch_optimizer.
"""

import re
from collections import OrderedDict, defaultdict

import pytest
import torch
from torch import nn

import adapt
from adapt.learned import attach_lsq
from tests.adaptive.test_attachment import hooks, refuses
from tests.training import RESTLESS, copies, is_on_grid, net, train


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.05)


class AcceleratedOptimizer(torch.optim.Optimizer):
    """Steps only where gradients are complete, and never calls the initialiser of torch's optimizers."""

    def __init__(self, optimizer):
        self.optimizer, self.is_complete = optimizer, True

    param_groups = property(lambda self: self.optimizer.param_groups)
    state = property(lambda self: self.optimizer.state)
    defaults = property(lambda self: self.optimizer.defaults)

    def step(self, closure=None):
        if self.is_complete:
            self.optimizer.step(closure)

    def zero_grad(self, set_to_none=True):
        if self.is_complete:
            self.optimizer.zero_grad(set_to_none)

    def state_dict(self):
        return self.optimizer.state_dict()

    def train(self):
        pass

    def eval(self):
        pass


class OptimWrapper:
    """Makes the whole update from a loss; no optimizer of torch."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def step(self):
        self.optimizer.step()

    def zero_grad(self):
        self.optimizer.zero_grad()


class AmpOptimWrapper(OptimWrapper):
    pass


class Lookahead(torch.optim.Optimizer):
    """Keeps slow weights and writes them into the fast ones after every second step of the optimizer inside."""

    def __init__(self, base_optimizer):
        self._optimizer_step_pre_hooks = OrderedDict()
        self._optimizer_step_post_hooks = OrderedDict()
        self.base_optimizer = base_optimizer
        self.param_groups, self.defaults = base_optimizer.param_groups, base_optimizer.defaults
        self.state = defaultdict(dict)
        self.steps = 0

    def step(self, closure=None):
        loss = self.base_optimizer.step(closure)
        self.steps += 1
        for group in self.param_groups if self.steps % 2 == 0 else ():
            for fast in group["params"]:
                slow = self.state[fast].setdefault("slow", fast.detach().clone())
                slow.lerp_(fast.detach(), 0.5)
                fast.data.copy_(slow)
        return loss


class OrthoGrad(torch.optim.Optimizer):
    """Changes the gradients before the step of the optimizer inside, and has the hooks of `step` alone."""

    def __init__(self, optimizer):
        self._optimizer_step_pre_hooks = OrderedDict()
        self._optimizer_step_post_hooks = OrderedDict()
        self._patch_step_function()
        self.optimizer = optimizer

    param_groups = property(lambda self: self.optimizer.param_groups)

    def step(self, closure=None):
        return self.optimizer.step(closure)


class Scheduled:
    """A loop's own wrapper, which sets the rate."""

    def __init__(self, optimizer):
        self.inner = optimizer

    def step(self):
        self.inner.step()


class Hookless(torch.optim.SGD):
    """Does not call its parent's initialiser."""

    def __init__(self, params):
        self.param_groups, self.defaults, self.state = [{"params": list(params), "lr": 0.1}], {}, defaultdict(dict)


class HooksThatNeverRun(Hookless):
    """Has the tables of hooks, and a `step` that runs none of them."""

    def __init__(self, params):
        super().__init__(params)
        for table in ("step_pre", "step_post", "state_dict_pre", "state_dict_post"):
            setattr(self, f"_optimizer_{table}_hooks", OrderedDict())
        for table in ("load_state_dict_pre", "load_state_dict_post"):
            setattr(self, f"_optimizer_{table}_hooks", OrderedDict())

    def step(self, closure=None):
        pass


class AdaHessian(torch.optim.SGD):
    """Known by its name alone."""


class SecondOrder(torch.optim.SGD):
    is_second_order = True


class WithPower(torch.optim.SGD):
    def __init__(self, params):
        super().__init__(params, lr=0.1)
        self.param_groups[0]["hessian_power"] = 1.0


class Sophia(torch.optim.SGD):
    def step(self, closure=None, hessian=None):
        return super().step(closure)


class FirstOrder(torch.optim.SGD):
    """What could be asked to use the Hessian, and is not."""

    hessian_approx = False

    def __init__(self, params):
        super().__init__(params, lr=0.1)
        self.hessian_approx, self.param_groups[0]["update_hessian"] = False, None


def attach_learned(optimizer, model):
    return attach_lsq(optimizer, model, weight_bits=4)


@pytest.mark.parametrize("wrapper", [AcceleratedOptimizer, OptimWrapper, AmpOptimWrapper])
@pytest.mark.parametrize("attach", [adapt.attach, attach_learned])
def test_what_merely_holds_an_optimizer_is_unwrapped(wrapper, attach):
    runs = []
    for wraps in (False, True):
        model = net()
        optimizer = sgd(model)
        outer = wrapper(optimizer) if wraps else optimizer
        controller = attach(outer, model)
        assert controller.optimizer is optimizer
        with pytest.raises(ValueError, match="optimizer has a controller already"):
            attach(outer, model)
        train(model, outer, 6, controller=controller)
        assert controller.step == 6
        runs.append(copies(controller.masters))
    assert all(torch.equal(master, runs[1][name]) for name, master in runs[0].items())


def test_steps_that_a_wrapper_leaves_out_are_none():
    model = net()
    outer = AcceleratedOptimizer(sgd(model))
    controller = adapt.attach(outer, model, RESTLESS)
    for step in range(8):
        outer.is_complete = step % 4 == 3
        train(model, outer, 1, step, controller)
    assert controller.step == 2
    assert all(is_on_grid(controller.layers[name], form) for name, form in controller.precisions.items())


def test_wrappers_in_wrappers():
    model = net()
    optimizer = sgd(model)
    assert adapt.attach(AcceleratedOptimizer(AcceleratedOptimizer(optimizer)), model).optimizer is optimizer
    model = net()
    refuses(NotImplementedError, "optimizer Lookahead wraps SGD", AcceleratedOptimizer(Lookahead(sgd(model))), model)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda p: Lookahead(sgd(p)), NotImplementedError, "optimizer Lookahead wraps SGD and may change weights or"),
        (lambda p: OrthoGrad(sgd(p)), NotImplementedError, "OrthoGrad wraps SGD.*train with SGD itself, without Ortho"),
        (lambda p: Scheduled(sgd(p)), TypeError, r"got Scheduled: if .* by step\(\) of the SGD in it, pass that"),
        (lambda p: Hookless(p.parameters()), NotImplementedError, "Hookless lacks the hooks of torch's optimizers"),
        (lambda p: HooksThatNeverRun(p.parameters()), NotImplementedError, "HooksThatNeverRun lacks the hooks"),
        (lambda p: AdaHessian(p.parameters(), lr=0.1), ValueError, "AdaHessian differentiates the gradients again"),
        (lambda p: SecondOrder(p.parameters(), lr=0.1), ValueError, "SecondOrder differentiates the gradients again"),
        (lambda p: WithPower(p.parameters()), ValueError, "WithPower differentiates the gradients again"),
        (lambda p: Sophia(p.parameters(), lr=0.1), ValueError, "Sophia differentiates the gradients again"),
    ],
)
def test_refusals(make, error, message):
    model = net()
    optimizer = make(model)
    refuses(error, message, optimizer, model)
    with pytest.raises(error, match=message):
        attach_lsq(optimizer, model, weight_bits=4)
    assert sum(hooks(model, None)) == 0


def test_an_optimizer_that_could_use_the_hessian_is_taken():
    model = net()
    assert adapt.attach(FirstOrder(model.parameters()), model).is_attached


def test_the_optimizer_inside_of_another_is_refused():
    model = net()
    inner = sgd(model)
    outer = Lookahead(inner)
    refuses(NotImplementedError, "optimizer Lookahead wraps SGD", inner, model)
    assert outer.base_optimizer is inner


@pytest.mark.parametrize("with_closure", [False, True])
@pytest.mark.parametrize("attach", [adapt.attach, attach_learned])
def test_an_optimizer_that_is_wrapped_later_is_refused_in_the_first_step(attach, with_closure):
    model = net()
    inner = sgd(model)
    controller = attach(inner, model)
    outer = Lookahead(inner)
    before = copies(model.named_parameters())

    def closure():
        loss = model(torch.ones(2, 6)).square().mean()
        loss.backward()
        return loss

    for _ in range(2):
        with pytest.raises(NotImplementedError, match=r"optimizer Lookahead wraps SGD.*train with SGD itself"):
            outer.step(closure) if with_closure else (closure(), outer.step())
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    del outer
    controller.forget_losses()
    train(model, inner, 3, controller=controller)
    assert controller.step == 3


def test_a_wrapper_that_merely_holds_the_optimizer_is_no_matter():
    model = net()
    optimizer = sgd(model)
    outer = AcceleratedOptimizer(optimizer)
    controller = adapt.attach(optimizer, model)
    train(model, outer, 3, controller=controller)
    assert controller.step == 3


# Steps that are never seen


def unseen_step(model):
    """What an engine does that updates parameters by itself."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.data -= 0.3 * parameter.grad


@pytest.mark.parametrize("attach", [adapt.attach, attach_learned])
@pytest.mark.parametrize("as_module", [True, False])
def test_an_optimizer_whose_steps_are_not_seen(attach, as_module, recwarn):
    model = net()
    if attach is attach_learned and not as_module:
        pytest.skip("learned formats need the module")
    attach(optimizer := sgd(model), model if as_module else model.named_parameters())
    for _ in range(6):
        optimizer.zero_grad()
        model(torch.ones(2, 6)).square().mean().backward()
        unseen_step(model)
    (warning,) = recwarn
    assert re.search("changed between backward passes, but no step of the SGD .* was seen", str(warning.message))
    assert warning.filename == __file__


def test_loops_that_begin_slowly_are_left_alone(recwarn):
    model = net()
    optimizer = sgd(model)
    controller = adapt.attach(optimizer, model, RESTLESS)
    x = torch.randn(3, 6)
    for _ in range(4):
        # Accumulation, evaluation in between, gradients that a scaler throws away, a state that is loaded.
        model.train()(x).square().mean().backward()
        model.eval()(x)
        with controller.master_weights():
            model(x)
    optimizer.zero_grad()
    model.load_state_dict(net(1).state_dict())
    train(model, optimizer, 3, controller=controller)
    assert not recwarn
    assert controller.step == 3


def test_nothing_is_watched_after_the_first_step_or_detaching():
    for attach in (adapt.attach, attach_learned):
        for ends in (lambda c, m: c.detach(), lambda c, m: train(m, c.optimizer, 1, controller=c)):
            model = net()
            controller = attach(sgd(model), model)
            assert any(p._post_accumulate_grad_hooks for p in model.parameters())
            ends(controller, model)
            assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


def test_compiled_models_are_watched_without_breaks():
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3))
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    optimizer = torch.optim.SGD(compiled.parameters(), lr=0.1)
    controller = adapt.attach(optimizer, compiled)
    train(compiled, optimizer, 4, controller=controller)
    assert counter.frame_count == 1
