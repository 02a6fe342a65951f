"""A learner for the user's own optimizer: `attach` for learned widths, `attach_lsq` and `attach_aqt` for given ones."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from adapt.engine import registry
from adapt.layers import choice
from adapt.layers.layer_bits import check_patterns
from adapt.layers.naming import module_site, named
from adapt.layers.optimizers import check_optimizer
from adapt.learned.aqt_run import AqtRun
from adapt.learned.budget import Budget
from adapt.learned.learner import Learner
from adapt.learned.options import (
    AqtOptions,
    AttachOptions,
    FixedWidths,
    LearnedWidths,
    LsqOptions,
    MaximumRanges,
    Plan,
)
from adapt.learned.phases import Phases
from adapt.learned.run import LearnedRun


def attach(
    optimizer: Optimizer,
    module: nn.Module,
    calibration: Iterable[Any] = (),
    *,
    weight_budget: Budget,
    activation_budget: Budget | None = None,
    phases: Phases,
    **options: Unpack[AttachOptions],
) -> Learner:
    """Learn the bit width of every weight channel and activation under size budgets (Schaefer et al. 2023).

    Hooks go on the optimizer and the modules; no module is replaced and the names in state_dict stay. Training then
    goes through three phases, counted in optimizer steps: all formats at the budget's average + 2 bits; learning of
    steps d and ranges q₊, from which the widths follow, under the penalty of eq. 2; fine-tuning with frozen formats.
    At the end of learning the widths are brought to the budgets, `Learner.log` says from where, and batch
    normalisation begins its statistics anew.

    Formats: weights by output channel, symmetric; biases and inputs of linear layers and convolutions one per tensor,
    inputs without a sign where calibration met none. First and last layers are layers like all others. A GradScaler's
    scale would count in the gradients to the activations' formats: use bfloat16, which needs none.

    Values that you write into a parameter in place between two steps, as by `parameter.clamp_(-1, 1)` under
    `torch.no_grad()` or by `load_state_dict`, become masters. Do not write through `parameter.data`: torch does not
    count such writes, so that they are noticed late, from samples, or not at all.

    Args:
        optimizer: any torch optimizer that evaluates the loss once in a step.
        module: the module that it trains.
        calibration: a few batches of inputs, each a tensor or a tuple of forward's positional arguments, which run
            through the module in its present mode. Needed with an activation budget.
        weight_budget: size of weights and quantised biases.
        activation_budget: size of the activations of one sample; None leaves activations in float32.
        phases: optimizer steps of each phase.
        activation_size: whether activations count by the "sum" of their tensors or by the largest, "max".
        floor: the fewest bits, 2 or 1. One signed bit is ±q₊.
        weight_scaling, activation_scaling: the gradient scaling of each, one of `adapt.learned.SCALINGS`.
        delta: δ of the scalings.
        beta: β of eq. 2 per kB²; by default 100 over the squared budget, so that an excess of 10 % costs 1. It rises
            to this value over the first half of learning.
        update_every: Φ: steps and ranges move every so many steps, by the mean of their gradients since.
        width_rate: octaves that d and q₊ move in an update at the peak of the schedule. By default fit for the number
            of updates that there are.
        warmup: share of each phase in which the learning rate rises.
        schedule: let the optimizer's learning rates, whose present values are the peaks, rise and then fall as a
            cosine in each phase. Off, they are left to you, and so they are, with a warning, as soon as there is a
            scheduler or somebody else changes one.
        quantize_biases: quantise the biases of quantised layers too.
        layers: which parameters are weights, called with (name, parameter); all of two or more dimensions if not given.
        layer_bits: widths by hand beside those that are learned: bits by pattern, `{"conv1": 8, "head.*": (6, 8)}`, one
            number or the fewest and the most. A pattern of `fnmatch` names what `Learner.formats` names, or a module:
            "conv1" is its weight, bias and input. The first one that matches decides. The budgets count these widths
            too.

    Returns:
        The learner. It lives as long as the optimizer. After its `detach()` the weights stay rounded, but activations
        are float32 unless you pass `keep_activations=True`.

    Raises:
        TypeError, ValueError, RuntimeError, NotImplementedError: an argument does not fit, a budget is below what
            `floor` bits take, calibration cannot run, or as `adapt.attach`.
    """
    plan = LearnedWidths(weight_budget=weight_budget, activation_budget=activation_budget, phases=phases, **options)
    return attach_plan(optimizer, module, plan, lambda learner: learner.calibrate(calibration))


def attach_lsq(
    optimizer: Optimizer,
    module: nn.Module,
    calibration: Iterable[Any] = (),
    *,
    weight_bits: int,
    **options: Unpack[LsqOptions],
) -> Learner:
    """LSQ: train at given bit widths with learned steps, the homogeneous case of learned widths.

    Steps begin at 2·E|x|/√Q_P and move in every optimizer step by gradient descent with momentum, at the optimizer's
    first learning rate, their gradients times 1/√(numel·Q_P).

    Args:
        optimizer, module, calibration, quantize_biases, layers: as in `attach`.
        layer_bits: as in `attach`; a pair of bounds moves `weight_bits` or `activation_bits` to the nearer one.
        weight_bits: 1 to 8. One bit is ±d.
        activation_bits: 1 to 8; None leaves activations in float32.
        per_channel: a step for each output channel of a weight, instead of one for the weight.
        power_of_two: round with 2^round(log₂ d) instead of the learned step d itself, weights and activations alike, so
            that scaling is a shift; gradients go straight through that rounding. Formats are then fixed point.
        steps: length of the training, over which the optimizer's learning rates rise and fall as in `attach`; None
            leaves them to you.
        warmup: share of the steps in which the learning rate rises.
        momentum: of the steps' own gradient descent.
        weight_scaling, activation_scaling, delta: as in `attach`; plain straight-through by default.

    Raises:
        TypeError, ValueError, RuntimeError, NotImplementedError: as `attach`.
    """
    plan = FixedWidths(weight_bits=weight_bits, **options)
    return attach_plan(optimizer, module, plan, lambda learner: learner.calibrate(calibration))


def attach_aqt(optimizer: Optimizer, module: nn.Module, *, steps: int, **options: Unpack[AqtOptions]) -> Learner:
    """AQT: train at given bit widths, in ranges that follow from the largest magnitudes (Abdolrashidi et al. 2021).

    Weights have a scale for each output channel, from max|w| in every step. Activations, the inputs of linear layers
    and convolutions, stay float32 in the first fifth of the training, while a moving average of each input's max|x| is
    kept; from then on that average is their range. An input has one scale, because the products that a layer sums
    must share it, and no sign if calibration met no negative value, as after a ReLU. Biases stay float32.

    Args:
        optimizer: any torch optimizer that evaluates the loss once in a step.
        module: the module that it trains.
        steps: optimizer steps of the whole training; the learning rates are yours.
        weight_bits, activation_bits: 2 to 8. None leaves activations in float32.
        first_bits, last_bits: the bits of weight and input of the first and the last layer, in the module's order.
        activations_from: share of the steps after which activations are rounded; the paper recommends 0.1 to 0.4.
        decay: what a step keeps of the moving average. Its ranges are those of the largest magnitude over a step's
            micro-batches and all processes.
        layers, layer_bits: as in `attach_lsq`; a pattern also goes before `first_bits` and `last_bits`.

    Returns:
        The learner, as from `attach`.

    Raises:
        TypeError, ValueError, NotImplementedError: as `attach`.
    """
    return attach_plan(optimizer, module, MaximumRanges(steps=steps, **options))


def attach_plan(
    optimizer: Optimizer, module: nn.Module, plan: Plan, begin: Callable[[Learner], None] | None = None
) -> Learner:
    """Return a learner with a plan, for `begin` to calibrate: what the other three share.

    Raises:
        TypeError, ValueError, RuntimeError, NotImplementedError: as they do.
    """
    optimizer = check_optimizer(optimizer)
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    if any(group.get("maximize") for group in optimizer.param_groups):
        raise ValueError(
            "steps and ranges are learned from the gradients of a loss that is minimised, but the optimizer has "
            "maximize=True: minimise the negative instead"
        )
    parameters = named(module)
    biases = _biases(module, parameters, plan.layers) if plan.quantize_biases else set()
    registry.check_free(optimizer, parameters)

    def is_layer(name: str, parameter: Tensor) -> bool:
        return name in biases or plan.layers(name, parameter)

    chosen = choice.choose(optimizer, parameters, is_layer)
    choice.check_modules(module, chosen)
    names = choice.candidates(parameters, is_layer)
    inputs = [module_site(f"{name}.input") for name in names if name not in biases] if plan.with_activations else []
    check_patterns(plan.layer_bits or {}, [*names, *inputs])

    def make() -> Learner:
        kind = AqtRun if isinstance(plan, MaximumRanges) else LearnedRun
        return Learner(optimizer, module, parameters, kind(plan, is_layer, chosen, module))

    return registry.register(optimizer, module, make, begin)


def _biases(module: nn.Module, parameters: Mapping[str, Tensor], layers: choice.Choice) -> set[str]:
    """The names of the biases that belong to a module with a quantised weight."""
    names = {id(p): name for name, p in parameters.items()}
    found = set()
    for owner in module.modules():
        own = [p for p in owner.parameters(recurse=False) if id(p) in names]
        if any(layers(names[id(p)], p) for p in own):
            found |= {names[id(p)] for p in own if p.ndim == 1 and p.dtype == torch.float32}
    return found
