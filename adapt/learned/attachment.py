"""Attach a learner to the user's optimizer: `attach` learns widths, `attach_lsq` and `attach_aqt` take given ones."""

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
from adapt.learned.keywords import AqtOptions, AttachOptions, LsqOptions
from adapt.learned.learner import Learner
from adapt.learned.options import FixedWidths, LearnedWidths, MaximumRanges, Plan
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

    Only hooks are added to the optimizer and the modules: no module is replaced, and the names in state_dict stay.
    Training then goes through three phases, counted in optimizer steps: pre-training with all formats at the budget's
    average + 2 bits; learning of steps d and ranges q₊, which determine the widths, under the penalty of eq. 2; and
    fine-tuning with frozen formats. Late in the learning phase the widths are cut to the budgets (`Learner.log` tells
    by how much), and batch normalisation restarts its statistics when fine-tuning begins.

    Weights have one symmetric format per output channel; biases and the inputs of linear layers and convolutions have
    one per tensor, and inputs are unsigned if calibration met no negative value. First and last layers are treated
    like all others. A GradScaler's scale would distort the gradients of the activations' formats: use bfloat16, which
    needs no scaler.

    Values written into a parameter in place between two steps become masters, for example by
    `parameter.clamp_(-1, 1)` under `torch.no_grad()` or by `load_state_dict`. Do not write through `parameter.data`:
    torch does not count such writes, so they are noticed late, from samples, or not at all.

    Args:
        optimizer: any torch optimizer that evaluates the loss once per step.
        module: the module that it trains.
        calibration: a few batches of inputs, each a tensor or a tuple of forward's positional arguments, which run
            through the module in its present mode. Required with an activation budget.
        weight_budget: size of weights and quantised biases.
        activation_budget: size of the activations of one sample; None leaves activations in float32.
        phases: optimizer steps of each phase.
        activation_size: "sum" counts the activations of all tensors, "max" only those of the largest tensor.
        floor: the fewest bits, 2 or 1. One signed bit is ±q₊.
        weight_scaling, activation_scaling: the gradient scaling of each, one of `adapt.learned.SCALINGS`.
        delta: δ of the scalings.
        beta: β of eq. 2 per kB²; by default 100 over the squared budget, so that an excess of 10 % costs 1. It rises
            to this value over the first half of learning.
        update_every: Φ: steps and ranges are updated every so many steps, by the mean of their gradients since.
        width_rate: octaves that d and q₊ move in an update at the peak of the schedule. The default depends on the
            number of updates.
        warmup: share of the training in which the learning rate rises, and of learning widths in which theirs does.
        schedule: make the optimizer's learning rates rise to their present values and then fall as a cosine over all
            phases. If False they are left to you; they also are, after a warning, once the optimizer has a scheduler or
            other code changes a rate.
        quantize_biases: quantise the biases of quantised layers too.
        layers: a predicate of (name, parameter) that selects the weights; by default, those of two or more dimensions.
        layer_bits: widths set by hand, as bits by pattern: `{"conv1": 8, "head.*": (6, 8)}`, either one number or
            (fewest, most). An `fnmatch` pattern names a key of `Learner.formats` or a module: "conv1" matches its
            weight, bias and input. The first match decides. These widths count towards the budgets.

    Returns:
        The learner. It lives as long as the optimizer. After its `detach()` the weights stay rounded, but activations
        are float32 unless you pass `keep_activations=True`.

    Raises:
        TypeError, ValueError, RuntimeError, NotImplementedError: an argument is invalid, a weight is not finite, a
            budget is below what `floor` bits take, calibration cannot run, or as in `adapt.attach`.
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
    """Train at given bit widths with learned steps (LSQ), the homogeneous case of learned widths.

    Steps of weights start at 2·E|w|/√Q_P, as published. Those of activations start at the least squared error over the
    calibration batches, because the published start clips much of what a ReLU passes. Every optimizer step moves each
    by gradient descent with momentum, at the learning rate of the optimizer's first group, with gradients multiplied by
    1/√(numel·Q_P), but by at most a twentieth of its size, except that steps of weights that began near zero may double
    while they are small.

    Args:
        optimizer, module, calibration, quantize_biases, layers: as in `attach`.
        layer_bits: as in `attach`; bounds clip `weight_bits` and `activation_bits`.
        weight_bits: 1 to 8. One bit is ±d.
        activation_bits: 1 to 8; None leaves activations in float32.
        per_channel: learn one step for each output channel of a weight, instead of one for the whole weight.
        power_of_two: round with the step 2^round(log₂ d) instead of the learned d, so that scaling is a shift and
            formats are fixed point. Gradients pass straight through the rounding of the step.
        steps: length of the training, over which the optimizer's learning rates rise and fall as in `attach`; None
            leaves them to you.
        warmup: share of the steps in which the learning rate rises.
        momentum: momentum of the gradient descent on the steps d.
        weight_scaling, activation_scaling, delta: as in `attach`; plain straight-through by default.

    Raises:
        TypeError, ValueError, RuntimeError, NotImplementedError: as in `attach`.
    """
    plan = FixedWidths(weight_bits=weight_bits, **options)
    return attach_plan(optimizer, module, plan, lambda learner: learner.calibrate(calibration))


def attach_aqt(optimizer: Optimizer, module: nn.Module, *, steps: int, **options: Unpack[AqtOptions]) -> Learner:
    """Train at given bit widths, with ranges set by the largest magnitudes (AQT, Abdolrashidi et al. 2021).

    Weights have a scale for each output channel, computed from max|w| in every step. Activations, the inputs of linear
    layers and convolutions, stay float32 for the first fifth of the training, while a moving average of each input's
    max|x| is kept; from then on this average is their range. An input has a single scale, because the products that a
    layer sums must share it, and is unsigned if no negative value was observed, as after a ReLU. Biases stay float32.

    Args:
        optimizer: any torch optimizer that evaluates the loss once per step.
        module: the module that it trains.
        steps: optimizer steps of the whole training; learning rates are left to you.
        weight_bits, activation_bits: 2 to 8. None leaves activations in float32.
        first_bits, last_bits: bits of the weight and input of the first and the last layer, in the module's order.
        activations_from: share of the steps after which activations are rounded; the paper recommends 0.1 to 0.4.
        decay: decay of the moving average per step. It averages the largest magnitude over a step's micro-batches and
            all processes.
        layers, layer_bits: as in `attach_lsq`; a pattern also takes precedence over `first_bits` and `last_bits`.

    Returns:
        The learner, as from `attach`.

    Raises:
        TypeError, ValueError, NotImplementedError: as in `attach`.
    """
    return attach_plan(optimizer, module, MaximumRanges(steps=steps, **options))


def attach_plan(
    optimizer: Optimizer, module: nn.Module, plan: Plan, begin: Callable[[Learner], None] | None = None
) -> Learner:
    """Attach a learner with this plan, and call `begin` with it: the shared part of the three functions above.

    Raises:
        TypeError, ValueError, RuntimeError, NotImplementedError: as in `attach`.
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
    """Return the names of the biases that belong to a module with a quantised weight."""
    names = {id(p): name for name, p in parameters.items()}
    found = set()
    for owner in module.modules():
        own = [p for p in owner.parameters(recurse=False) if id(p) in names]
        if any(layers(names[id(p)], p) for p in own):
            found |= {names[id(p)] for p in own if p.ndim == 1 and p.dtype == torch.float32}
    return found
