"""A controller's state as plain data, and a controller that goes on from it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from adapt import checkpoint, layering
from adapt.activations import check_state
from adapt.sharding import Whole
from adapt.switching.policy import carry, pack, unpack
from adapt.trace import Trace

if TYPE_CHECKING:
    from adapt.controller import Controller


def state_of(controller: "Controller") -> dict[str, Any]:
    """What `Controller.state_dict` answers."""
    trace, masters = controller.trace, controller._layers
    biases, activations = controller._biases, controller._activations
    optimized = _optimized(controller)
    gradients = checkpoint.copied(optimized, (p.grad for p in optimized.values()))
    return {
        "version": checkpoint.VERSION,
        "step": controller.step,
        "seed": controller._seed,
        "stochastic": controller._stochastic,
        "policy": type(controller.policy).__name__,
        "layers": list(masters.names),
        "state": pack(controller._decisions.state),
        "masters": checkpoint.copied(masters.names, masters.weights),
        "sums": checkpoint.copied(masters.names, masters.sums),
        "windows": {n: [g.clone() for g in w] for n, w in zip(masters.names, masters.windows, strict=True)},
        "skipped": dict(zip(masters.names, controller._decisions.skipped.tolist(), strict=True)),
        **({"followers": {}, "follower_formats": {}} if biases is None else biases.state_dict()),
        "micro_losses": [float(loss) for loss in controller._micro_losses],
        "gradients": gradients if controller._micro_losses else {},
        "activations": {} if activations is None else activations.state_dict(),
        "trace": checkpoint.sealed(trace.state_dict()),
    }


@torch.no_grad()
def restore(controller: "Controller", state: Mapping[str, Any], *, strict: bool) -> None:
    """What `Controller.load_state_dict` does: look at all of the state first, then change the controller."""
    policy, masters, decisions = controller.policy, controller._layers, controller._decisions
    biases, activations = controller._biases, controller._activations
    names = masters.names
    checkpoint.check(
        state,
        policy=type(policy).__name__,
        weights=dict(zip(names, masters.weights, strict=True)),
        sums=policy.sums_gradients,
        strict=strict,
    )
    old_names = list(state["layers"])
    old = unpack(state["state"], policy.start(Whole(masters.weights[:1] * len(old_names))), len(old_names))
    places = {i: old_names.index(name) for i, name in enumerate(names) if name in old_names}
    policy_state = carry(old, policy.start(Whole(masters.weights)), places)
    if policy.keeps_gradients:
        checkpoint.check_windows(state["windows"], dict(zip(old_names, old.gradients.tolist(), strict=True)))
    same = tuple(old_names) == names
    trace = Trace.from_state_dict(checkpoint.opened(state["trace"])) if same else Trace(names, masters.numel)
    optimized = _optimized(controller)
    gradients = {name: p for name, p in optimized.items() if name in state["gradients"]}
    checkpoint.check_tensors("gradients", state["gradients"], gradients)
    if biases is not None:
        biases.check(state, strict=strict)
    if activations is not None:
        check_state(state["activations"], activations.names, strict=strict)

    controller.step, controller._seed, controller._stochastic = state["step"], state["seed"], state["stochastic"]
    decisions.go_on(policy_state, trace)
    for i in places:
        masters.load(i, state["masters"], state["sums"], state["windows"])
        decisions.skipped[i] = state["skipped"].get(names[i], 0)
    controller._use_formats(range(len(names)))
    if biases is not None:
        biases.load(state)
    for bank in controller.banks:
        bank.seed, bank.stochastic = controller._seed, controller._stochastic
    if activations is not None:
        activations.seed, activations.stochastic = controller._seed, controller._stochastic
        activations.load_state_dict(state["activations"], strict=strict)
    controller._micro_losses = list(state["micro_losses"])
    for name, parameter in gradients.items():
        parameter.grad = state["gradients"][name].to(parameter.device, copy=True)
    controller._restored = True
    controller._steps.forget()
    controller._renew()


def _optimized(controller: "Controller") -> dict[str, Tensor]:
    """Every parameter of the optimizer by its name."""
    inside = {id(p) for p in layering.optimized(controller.optimizer)}
    return {name: p for name, p in controller._known.items() if id(p) in inside}
