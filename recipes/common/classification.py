"""Classifiers of pictures: their settings, optimizer, schedule, batches and evaluation."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau

import adapt
from recipes.common import training
from recipes.common.batches import Batches
from recipes.common.data import Pictures
from recipes.common.methods import buffer_bits, method
from recipes.common.models import MODELS
from recipes.common.settings import Settings, check_choice
from recipes.common.training import Run, decaying, evaluating

SCHEDULES = ("onecycle", "plateau")
Splits = tuple[Pictures, Pictures]
"""Pictures to train on, and pictures to test on."""


@dataclass(frozen=True, kw_only=True)
class ClassifierSettings(Settings):
    """Settings of a classifier of pictures that SGD trains; l1 and l2 are of its convolutions and dense layers.

    Args:
        data_set, model: names in `recipes.common.data.DATA_SETS` (or "digits") and `recipes.common.models.MODELS`.
        schedule: "onecycle" (`lr` is its peak) or "plateau" (`lr` is its start; a tenth after six epochs in which the
            training loss did not fall).
        momentum: of SGD, with Nesterov's correction.
        subset: train on this many pictures only, the first ones.
    """

    data_set: str
    model: str
    schedule: str = "onecycle"
    momentum: float = 0.9
    subset: int | None = None

    def __post_init__(self) -> None:
        check_choice("model", self.model, tuple(MODELS))
        check_choice("schedule", self.schedule, SCHEDULES)
        super().__post_init__()

    @property
    def title(self) -> str:
        """Data set, network and method."""
        return f"{self.data_set} {self.model} {self.method}"

    def steps_per_epoch(self, pictures: int) -> int:
        """Optimizer steps in an epoch, if the whole training split has this many pictures."""
        return (self.subset or pictures) // self.batch_size


def recommended(model: str, name: str, data_set: str = "cifar10") -> dict[str, Any]:
    """Learning rate, penalties and buffer bits with which the method `name` trains `model`; rates found on CIFAR-10."""
    return {**method(name).rates(model), "buffer_bits": buffer_bits(model, data_set)}


def train(
    settings: ClassifierSettings,
    splits: Splits,
    folder: Path | None,
    *,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> Run:
    """Train until `settings.epochs` are done, continuing from `folder`; arguments as in `recipes.common.training`.

    Raises:
        ValueError: there are fewer pictures than the subset or a batch needs, the folder holds another run, or the loss
            became NaN.
    """
    batches, test_batches = make_batches(settings, splits, device)
    torch.manual_seed(settings.seed)
    model, example = make_model(settings, batches.pictures)
    optimizer, controller = make_optimizer(settings, model, len(batches))
    schedule = make_schedule(settings, optimizer, settings.epochs * len(batches))
    run = Run(settings, model, optimizer, controller, schedule, example)
    return training.train(run, batches, partial(evaluate, batches=test_batches), folder, progress=progress)


def is_natural(data_set: str) -> bool:
    """Whether the pictures may be cropped and mirrored, as those of CIFAR but not digits."""
    return data_set.startswith("cifar")


def make_batches(settings: ClassifierSettings, splits: Splits, device: torch.device | str) -> tuple[Batches, Batches]:
    """The batches to train on, in which natural pictures are cropped and flipped, and those to test on.

    Raises:
        ValueError: there are fewer pictures than the subset or a batch needs.
    """
    if settings.subset is not None and not 1 <= settings.subset <= len(splits[0]):
        raise ValueError(f"subset must lie between 1 and the {len(splits[0])} pictures, got {settings.subset}")
    pictures, test_pictures = (split.to(device) for split in (splits[0].first(settings.subset), splits[1]))
    mean, deviation = pictures.statistics()
    natural = is_natural(settings.data_set)
    batches = Batches(
        pictures, settings.batch_size, mean, deviation, shuffle=True, seed=settings.seed,
        padding=4 if natural else 0, flip=natural,
    )  # fmt: skip
    return batches, Batches(test_pictures, 500, mean, deviation)


def make_model(settings: ClassifierSettings, pictures: Pictures) -> tuple[nn.Module, torch.Tensor]:
    """The initialised network, in channels-last memory on the pictures' device, and an input of one sample."""
    device = pictures.images.device
    model = MODELS[settings.model](pictures.classes, pictures.shape)
    return model.to(device=device, memory_format=torch.channels_last), torch.zeros(1, *pictures.shape, device=device)


def make_sgd(settings: ClassifierSettings, model: nn.Module) -> torch.optim.SGD:
    """SGD for float32 masters that no controller penalises: `l2` is its weight decay."""
    return torch.optim.SGD(
        decaying(model, settings.l2), settings.lr, settings.momentum, nesterov=settings.momentum > 0, fused=True
    )


def make_optimizer(
    settings: ClassifierSettings, model: nn.Module, steps_per_epoch: int
) -> tuple[Optimizer, adapt.Controller | None]:
    """SGD for float32, `adapt.ASGD` for everything else."""
    policy = settings.policy(steps_per_epoch)
    if policy is None:
        return make_sgd(settings, model), None
    optimizer = adapt.ASGD(
        model, settings.lr, settings.momentum, nesterov=settings.momentum > 0, fused=True, policy=policy,
        l1=settings.l1, l2=settings.l2, seed=settings.seed, rounding=settings.rounding,
    )  # fmt: skip
    return optimizer, optimizer.controller


def make_schedule(settings: ClassifierSettings, optimizer: Optimizer, steps: int) -> LRScheduler | ReduceLROnPlateau:
    """The learning-rate schedule over `steps` optimizer steps."""
    if settings.schedule == "onecycle":
        return OneCycleLR(optimizer, settings.lr, total_steps=steps, cycle_momentum=False)
    return ReduceLROnPlateau(optimizer, factor=0.1, patience=5)


def evaluate(model: nn.Module, batches: Batches) -> dict[str, float]:
    """Mean loss and accuracy on test pictures."""
    loss = correct = torch.zeros((), device=batches.mean.device)
    with evaluating(model):
        for x, labels in batches:
            logits = model(x)
            loss = loss + F.cross_entropy(logits, labels, reduction="sum")
            correct = correct + (logits.argmax(1) == labels).sum()
    number = len(batches.pictures)
    return {"test_loss": float(loss) / number, "accuracy": float(correct) / number}
