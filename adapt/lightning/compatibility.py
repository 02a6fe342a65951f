"""What adaptive precision works together with in Lightning, and what not."""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import (
    Callback,
    GradientAccumulationScheduler,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from adapt.attachment import attach, attached
from adapt.controller import Controller
from adapt.layers.layering import named, optimized, plain_names
from adapt.lightning.averaging import AfterAveraging, BeforeAveraging
from adapt.optim import ASGD
from adapt.switching.fixed import FOREVER


def check_trainer(trainer: Any) -> None:
    """Refuse a trainer under which forward passes would leave the grid.

    Raises:
        TypeError: it belongs to the other of Lightning's two packages.
        NotImplementedError: it has a strategy or a callback that cannot work together with this one.
        ValueError: it has the callback twice.
    """
    if not isinstance(trainer, Trainer):
        raise TypeError(
            f"AdaptivePrecision belongs to the package lightning, but the trainer is a {type(trainer).__module__} one: "
            "import Trainer, LightningModule and callbacks from lightning, none of them from pytorch_lightning"
        )
    if isinstance(trainer.strategy, FSDPStrategy | DeepSpeedStrategy | ModelParallelStrategy):
        raise NotImplementedError(
            f"{type(trainer.strategy).__name__} shards the parameters, and its checkpoints would lack the masters: use "
            'strategy="ddp" or one device, or shard by torch.distributed.fsdp.fully_shard in a plain loop'
        )
    names = [type(callback).__name__ for callback in callbacks(trainer)]
    if any(isinstance(callback, StochasticWeightAveraging) for callback in callbacks(trainer)):
        raise NotImplementedError(
            "StochasticWeightAveraging averages quantised weights and trains off the grid with their mean: use "
            "lightning.pytorch.callbacks.WeightAveraging, which AdaptivePrecision lets average the masters"
        )
    if names.count("AdaptivePrecision") > 1:
        raise ValueError("the trainer has several AdaptivePrecision callbacks: one serves all optimizers")


def callbacks(trainer: Trainer) -> list[Callback]:
    """The trainer's callbacks."""
    return trainer.callbacks  # type: ignore[attr-defined, no-any-return]


def arrange(trainer: Trainer, first: Callback, controllers: list[Controller]) -> list[BeforeAveraging]:
    """Put a callback first, and a pair of others around every one that averages weights.

    A learning-rate finder or batch-size finder runs in `on_fit_start`, too, and what it finds is of use only if the
    controller is there before it.

    Returns:
        the first of each pair.
    """
    disperse(trainer)
    others: list[Callback] = []
    pairs = []
    for callback in callbacks(trainer):
        if isinstance(callback, WeightAveraging):
            pairs.append(BeforeAveraging(controllers))
            others += [pairs[-1], callback, AfterAveraging(pairs[-1])]
        elif callback is not first:
            others.append(callback)
    trainer.callbacks = [first, *others]  # type: ignore[attr-defined]
    return pairs


def disperse(trainer: Trainer) -> None:
    """Take those pairs away."""
    kept = [c for c in callbacks(trainer) if not isinstance(c, BeforeAveraging | AfterAveraging)]
    trainer.callbacks = kept  # type: ignore[attr-defined]


def attach_all(
    optimizers: Sequence[Optimizer], pl_module: LightningModule, options: dict[str, Any]
) -> list[Controller]:
    """A controller for each optimizer with layers, its own where it has one. All of them or, on an error, no new one.

    Raises:
        ValueError, TypeError, NotImplementedError: as `adapt.attach`; no optimizer has a layer; an ASGD lost its
            controller.
    """
    defaults = {name: parameter.default for name, parameter in inspect.signature(attach).parameters.items()}
    own = [attached(optimizer) for optimizer in optimizers]
    if any(own) and any(value != defaults[name] for name, value in options.items()):
        rank_zero_warn(
            "an optimizer of this module has a controller of its own, to which the settings given to "
            "AdaptivePrecision do not apply: give them to adapt.ASGD or adapt.attach instead"
        )
    controllers: list[Controller] = []
    try:
        for optimizer, controller in zip(optimizers, own, strict=True):
            if controller is not None:
                controllers.append(controller)
            elif isinstance(optimizer, ASGD):
                raise ValueError(
                    "configure_optimizers returned an adapt.ASGD without a controller, a copy or one that an earlier "
                    "fit used and detached: make a new one in configure_optimizers"
                )
            elif len(optimizers) == 1 or _has_layers(optimizer, pl_module, options):
                controllers.append(attach(optimizer, pl_module, **options))
        if not controllers:
            raise ValueError(
                "AdaptivePrecision found no layer to quantise: configure_optimizers must return an optimizer of "
                "weights with two or more dimensions (or that `layers` takes)"
            )
    except Exception:
        for controller in controllers:
            controller.detach("evaluation" if controller.step else "masters")
        raise
    return controllers


def until_known(policy: Any) -> Any:
    """The policy, with an endless epoch where it asks for the epoch's length and was not told."""
    return replace(policy, steps_per_epoch=FOREVER) if _asks(policy) else policy


def tell_steps_per_epoch(policy: Any, trainer: Trainer, pl_module: LightningModule) -> Any:
    """The policy, with the optimizer steps of an epoch where it asks for them. Known once the data are set up.

    Raises:
        ValueError: the trainer cannot know them.
    """
    if not _asks(policy):
        return policy
    batches = trainer.num_training_batches
    if not pl_module.automatic_optimization:
        reason = "in manual optimization the module decides when its optimizers step"
    elif any(isinstance(callback, GradientAccumulationScheduler) for callback in callbacks(trainer)):
        reason = "GradientAccumulationScheduler changes their number"
    elif math.isinf(batches):
        reason = "the training data have no length"
    else:
        return replace(policy, steps_per_epoch=math.ceil(batches / trainer.accumulate_grad_batches))
    raise ValueError(
        f"{type(policy).__name__} must know how many optimizer steps an epoch has, but {reason}: give it "
        "steps_per_epoch=…"
    )


def _asks(policy: Any) -> bool:
    return getattr(policy, "steps_per_epoch", 0) is None


def _has_layers(optimizer: Optimizer, pl_module: LightningModule, options: Mapping[str, Any]) -> bool:
    members = {id(parameter) for parameter in optimized(optimizer)}
    choice = options["layers"]
    return any(id(p) in members and p.requires_grad and choice(name, p) for name, p in named(pl_module).items())


@torch.no_grad()
def untouched(controller: Controller, weights: Mapping[str, Tensor]) -> bool:
    """Whether a module's weights are still those that the controller left when it was detached."""
    plain = plain_names(weights)
    weights = {plain[name]: weight for name, weight in weights.items()}
    layers = controller.banks[0]
    for index, name in enumerate(layers.names):
        expected = layers.seen(index, "evaluation" if controller.step else "masters")
        if name not in weights or not torch.equal(weights[name].to(expected.device), expected):
            return False
    return True
