"""A controller for an optimizer: one at a time."""

import gc
import weakref
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.optim import Optimizer

from adapt.controller import Controller
from adapt.layers import layering
from adapt.numerics import Precision
from adapt.run.settings import Settings
from adapt.switching.adapt import AdaPT
from adapt.switching.policy import Policy

Kind = TypeVar("Kind", bound=Controller)

_controllers: weakref.WeakSet[Controller] = weakref.WeakSet()


def _live() -> list[Controller]:
    """The controllers that are attached."""
    return [controller for controller in list(_controllers) if controller.is_attached]


def attach(
    optimizer: Optimizer,
    params: layering.Parameters,
    policy: Policy[Any] | None = None,
    *,
    l1: float = 0.0,
    l2: float = 0.0,
    rounding: str = "stochastic",
    seed: int = 0,
    layers: layering.Choice = layering.is_matrix,
    quantize_biases: bool = False,
    l1_by_word_length: bool = False,
    trace_every: int = 1,
    activations: str | int | None = None,
    quantize_errors: bool = False,
    execution: str | None = None,
    execution_backward: bool = True,
) -> Controller:
    """Train the layers of an optimizer at adaptive precision from its next step on.

    Hooks go on the optimizer itself, so that schedulers, clipping, scalers and Lightning see the optimizer they
    know. The present weights become the float32 masters and the parameters their quantised copies. What torch's SGD
    would do to the layers is done together with the rounding, unless a hook of someone else comes between; their
    gradients then keep their values. Other optimizers find, and leave, gradients that are normalised and penalised.

    Args:
        optimizer: any torch optimizer that evaluates the loss once in a step.
        params: the module that the optimizer trains, or its named parameters, or its parameters. With a module,
            evaluation mode shows the weights rounded to nearest and `load_state_dict` sets the masters; without one,
            see `Controller.evaluation_weights`. With `torch.compile`, pass the module that it returned.
        policy: what decides on the formats; `AdaPT()`, the paper's setting, if None.
        l1: α of the penalty α‖W‖₁ on every layer.
        l2: β of the penalty β/2·‖W‖₂².
        rounding: "stochastic" or "nearest", in training. Evaluation always rounds to nearest.
        seed: seed of the rounding stream, which is independent of every other generator.
        layers: which parameters are layers, called with (name, parameter); weights with at least two dimensions
            if not given. A frozen parameter joins when it is unfrozen.
        quantize_biases: quantise biases and norm parameters too, in the word length of the layer before them and a
            fraction length of their own.
        l1_by_word_length: scale each layer's α by WL/32, the differentiable variant of the word-length penalty.
        trace_every: write every k-th step into the trace.
        activations: quantise the inputs and outputs of the linear layers, convolutions and embeddings too, with a
            straight-through gradient: "layer" in the layer's own format, "range" in its word length with the fraction
            length that the observed range asks for, a number in a word of so many bits by range; see
            `adapt.activations.Activations`. Of recurrent layers, attention, and layers with weight norm, spectral norm
            or pruning only the weights are quantised. Needs the module in `params`.
        quantize_errors: quantise the gradients that come back to the outputs of these layers too, in the activations'
            word length with the fraction length that their range asks for.
        execution: really run the products of linear layers and convolutions in "bfloat16" (words of up to 8 bits) or
            "float16" (up to 11), as long as their words fit; see `adapt.execution.Execution` for what is rounded where.
            Needs the module in `params`.
        execution_backward: run the products for the gradients of these layers in the short type too.

    Returns:
        The controller. It lives as long as the optimizer.

    Raises:
        TypeError, ValueError, NotImplementedError: an argument does not fit, the optimizer evaluates the loss several
            times in a step, its parameters are not those of `params`, a controller is attached already, or there is no
            layer. Nothing is attached then.
    """
    layering.check_optimizer(optimizer)
    policy = AdaPT() if policy is None else policy
    check_policy(policy)
    settings = Settings(
        l1=l1,
        l2=l2,
        rounding=rounding,
        seed=seed,
        layers=layers,
        quantize_biases=quantize_biases,
        l1_by_word_length=l1_by_word_length,
        trace_every=trace_every,
        activations=activations,
        quantize_errors=quantize_errors,
        execution=execution,
        execution_backward=execution_backward,
    )
    if (l1 or l2) and any(group.get("maximize") for group in optimizer.param_groups):
        raise ValueError(
            "l1 and l2 are penalties of a loss that is minimised, but the optimizer has maximize=True: "
            "minimise the negative instead"
        )
    module = params if isinstance(params, nn.Module) else None
    if activations is not None and module is None:
        raise ValueError("activations are quantised by hooks on the layers: pass the module itself as params")
    if execution is not None and module is None:
        raise ValueError("execution changes how the layers compute: pass the module itself as params")
    parameters = layering.named(params)
    return admit(optimizer, parameters, lambda: Controller(optimizer, module, parameters, policy, settings))


def check_policy(policy: object) -> None:
    """Refuse what cannot decide on formats.

    Raises:
        TypeError: it is no policy.
    """
    missing = [name for name in vars(Policy) if not name.startswith("_") and not hasattr(policy, name)]
    if isinstance(policy, type) or missing:
        hint = ""
        if isinstance(policy, Precision):
            hint = f": a format that stays is adapt.Fixed({policy!r})"
        elif hasattr(policy, "advance") and missing:
            hint = f": it lacks {', '.join(missing)} of adapt.switching.policy.Policy"
        raise TypeError(f"policy must be a policy such as adapt.AdaPT(), got {policy!r}{hint}")


def admit(optimizer: Optimizer, parameters: Mapping[str, Tensor], make: Callable[[], Kind]) -> Kind:
    """Make a controller for an optimizer that has none.

    Raises:
        ValueError: the optimizer, or another one of these parameters, has a controller.
    """
    _refuse_second(optimizer, parameters)
    controller = make()
    _controllers.add(controller)
    return controller


def attached(optimizer: Optimizer) -> Controller | None:
    """The controller that is attached to the optimizer, if there is one."""
    return next((controller for controller in _live() if controller.optimizer is optimizer), None)


def _refuse_second(optimizer: Optimizer, parameters: Mapping[str, Tensor]) -> None:
    if attached(optimizer) is not None:
        raise ValueError("optimizer has a controller already: call the controller's detach() before attaching again")
    mine = {id(parameter) for parameter in layering.optimized(optimizer)}
    taken = [name for name, parameter in parameters.items() if id(parameter) in mine & _kept()]
    if taken:
        # An optimizer and its controller hold each other, so one that was just dropped may still be there.
        gc.collect()
    for name in taken:
        if id(parameters[name]) in _kept():
            raise ValueError(f"params holds {name}, which another optimizer's controller keeps: detach() that first")


def _kept() -> set[int]:
    """The identities of all parameters that some controller keeps masters of."""
    return {id(p) for controller in _live() for masters in controller.banks for p in masters.parameters}
