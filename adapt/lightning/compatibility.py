"""Which trainers the callbacks work with, where they stand among others, and which optimizers they attach to."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor
from torch.nn.parameter import UninitializedParameter
from torch.optim import Optimizer

from adapt.adaptive.asgd import ASGD
from adapt.adaptive.attachment import attach
from adapt.adaptive.options import Settings
from adapt.engine.engine import Engine
from adapt.engine.registry import attached
from adapt.layers.choice import Choice
from adapt.layers.naming import named, plain_names
from adapt.layers.optimizers import optimized
from adapt.layers.view import View
from adapt.lightning.averaging import AfterAveraging, BeforeAveraging
from adapt.lightning.packages import Callback, LightningModule, Trainer, classes
from adapt.switching.fixed import FOREVER
from adapt.switching.policy import Policy

_AVERAGING = classes("callbacks.WeightAveraging")
_AVERAGING_OFF_THE_GRID = classes("callbacks.StochasticWeightAveraging")
_CHANGING_ACCUMULATION = classes("callbacks.GradientAccumulationScheduler")
_SHARDING = classes("strategies.FSDPStrategy", "strategies.DeepSpeedStrategy", "strategies.ModelParallelStrategy")


def check_trainer(trainer: Trainer, kind: type[Callback]) -> None:
    """Refuse a trainer in which forward passes would leave the grid.

    Args:
        trainer: of either package.
        kind: the class of callbacks of which there may be one.

    Raises:
        NotImplementedError: it has a strategy or a callback that cannot work together with this one.
        ValueError: it has several callbacks of the kind.
    """
    if isinstance(trainer.strategy, _SHARDING):
        raise NotImplementedError(
            f"{type(trainer.strategy).__name__} shards the parameters, and its checkpoints would lack the masters: use "
            'strategy="ddp" or one device, or shard by torch.distributed.fsdp.fully_shard in a plain loop'
        )
    if any(isinstance(callback, _AVERAGING_OFF_THE_GRID) for callback in callbacks(trainer)):
        raise NotImplementedError(
            "StochasticWeightAveraging averages quantised weights and trains off the grid with their mean: use "
            "the callback WeightAveraging, which AdaptivePrecision lets average the masters"
        )
    names = [type(callback).__name__ for callback in callbacks(trainer) if isinstance(callback, kind)]
    if len(names) > 1:
        raise ValueError(
            f"the trainer has several callbacks that set precision ({', '.join(names)}): keep one, which serves all "
            "optimizers"
        )


def callbacks(trainer: Trainer) -> list[Callback]:
    """Return the trainer's callbacks."""
    return trainer.callbacks  # type: ignore[attr-defined, no-any-return]


def arrange_callbacks(trainer: Trainer, first: Callback, controllers: list[Engine]) -> list[BeforeAveraging]:
    """Put a callback first, and a pair of helpers around every callback that averages weights.

    First, because finders of learning rate and batch size run in `on_fit_start`, where controllers are attached: they
    have to find what training at this precision needs.

    Returns:
        the first helper of each pair.
    """
    remove_helpers(trainer)
    others: list[Callback] = []
    pairs = []
    for callback in callbacks(trainer):
        if isinstance(callback, _AVERAGING):
            pairs.append(BeforeAveraging(controllers))
            others += [pairs[-1], callback, AfterAveraging(pairs[-1])]
        elif callback is not first:
            others.append(callback)
    trainer.callbacks = [first, *others]  # type: ignore[attr-defined]
    return pairs


def remove_helpers(trainer: Trainer) -> None:
    """Remove the helpers that `arrange_callbacks` put around callbacks that average weights."""
    kept = [c for c in callbacks(trainer) if not isinstance(c, BeforeAveraging | AfterAveraging)]
    trainer.callbacks = kept  # type: ignore[attr-defined]


def attach_all(
    optimizers: Sequence[Optimizer], pl_module: LightningModule, policy: Policy[Any] | None, settings: Settings
) -> list[Engine]:
    """Attach to each optimizer with layers, unless it has a controller. Attach to all or, on an error, to none.

    Raises:
        ValueError, TypeError, NotImplementedError: as `adapt.attach`; no optimizer has a layer; an ASGD lost its
            controller.
    """
    own = [attached(optimizer) for optimizer in optimizers]
    if any(own) and (policy is not None or settings != Settings()):
        rank_zero_warn(
            "an optimizer of this module has a controller of its own, to which the settings given to "
            "AdaptivePrecision do not apply: give them to adapt.ASGD or adapt.attach instead"
        )
    controllers: list[Engine] = []
    try:
        for optimizer, controller in zip(optimizers, own, strict=True):
            if controller is not None:
                controllers.append(controller)
            elif isinstance(optimizer, ASGD):
                raise ValueError(
                    "configure_optimizers returned an adapt.ASGD without a controller, a copy or one that an earlier "
                    "fit used and detached: make a new one in configure_optimizers"
                )
            elif has_layers(optimizer, pl_module, settings.layers):
                controllers.append(attach(optimizer, pl_module, policy, **vars(settings)))
        if not controllers:
            raise without_layers("AdaptivePrecision")
    except Exception:
        detach(controllers)
        raise
    return controllers


def detach(controllers: Iterable[Engine]) -> None:
    """Detach, leaving masters rounded to nearest, or the weights as they were if there was no step."""
    for controller in controllers:
        controller.detach(_final_view(controller), keep_activations=controller.step > 0)


def _final_view(controller: Engine) -> View:
    return "evaluation" if controller.step else "masters"


def with_endless_epochs(policy: Any) -> Any:
    """Return the policy, with an endless epoch if it needs the epoch's length and was not given it."""
    return replace(policy, steps_per_epoch=FOREVER) if _needs_steps_per_epoch(policy) else policy


def with_steps_per_epoch(policy: Any, trainer: Trainer, pl_module: LightningModule) -> Any:
    """Return the policy, with the number of optimizer steps in an epoch if it needs that and was not given it.

    The number is known once the data are set up.

    Raises:
        ValueError: the trainer cannot know them.
    """
    if not _needs_steps_per_epoch(policy):
        return policy
    batches = trainer.num_training_batches
    reason = why_steps_are_unknown(trainer, pl_module)
    if reason is None and math.isinf(batches):
        reason = "the training data have no length"
    if reason is not None:
        raise ValueError(
            f"{type(policy).__name__} must know how many optimizer steps an epoch has, but {reason}: give it "
            "steps_per_epoch=…"
        )
    return replace(policy, steps_per_epoch=math.ceil(batches / trainer.accumulate_grad_batches))


def why_steps_are_unknown(trainer: Trainer, pl_module: LightningModule) -> str | None:
    """Return why the optimizer steps of an epoch do not follow from its batches; None if they do."""
    if not pl_module.automatic_optimization:
        return "in manual optimization the module decides when its optimizers step"
    return "GradientAccumulationScheduler changes their number" if changes_accumulation(trainer) else None


def changes_accumulation(trainer: Trainer) -> bool:
    """Return whether some steps have more micro-batches than others."""
    return any(isinstance(callback, _CHANGING_ACCUMULATION) for callback in callbacks(trainer))


def _needs_steps_per_epoch(policy: Any) -> bool:
    return getattr(policy, "steps_per_epoch", 0) is None


def has_layers(optimizer: Optimizer, pl_module: LightningModule, choice: Choice) -> bool:
    """Return whether the optimizer trains parameters that are layers, or may become layers when they get a shape."""
    members = {id(parameter) for parameter in optimized(optimizer)}
    return any(
        id(p) in members and p.requires_grad and (isinstance(p, UninitializedParameter) or choice(name, p))
        for name, p in named(pl_module).items()
    )


def without_layers(callback: str) -> ValueError:
    """Return the error for a module of which no optimizer has layers."""
    return ValueError(
        f"{callback} found no layer to quantise: configure_optimizers must return an optimizer of weights with two or "
        "more dimensions (or that `layers` takes)"
    )


@torch.no_grad()
def untouched(controller: Engine, weights: Mapping[str, Tensor]) -> bool:
    """Return whether a module's weights are still those that the controller left when it was detached."""
    plain = plain_names(weights)
    weights = {plain[name]: weight for name, weight in weights.items()}
    layers = controller.all_masters[0]
    for index, name in enumerate(layers.names):
        expected = layers.view_of(index, _final_view(controller))
        if name not in weights or not torch.equal(weights[name].to(expected.device), expected):
            return False
    return True
