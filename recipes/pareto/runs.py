"""One run: a ResNet of so many filters trained at one precision, and the line that records it."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adapt import perfmodel
from adapt.learned import attach_aqt
from recipes.common import commands, ledger, training
from recipes.common.batches import Batches
from recipes.common.bfloat16 import Bfloat16
from recipes.common.classification import (
    ClassifierSettings,
    Splits,
    evaluate,
    make_batches,
    make_schedule,
    make_sgd,
)
from recipes.common.models import resnet
from recipes.common.records import checkpoint_folder, outcome, provenance
from recipes.common.settings import check_choice
from recipes.common.training import Run

LEDGER = "pareto.jsonl"
GAP_PICTURES = 10_000
"""Training pictures, without crops and flips, on which the training loss is measured."""

PRECISIONS: Mapping[str, tuple[int, int]] = {
    "bfloat16": (16, 16),
    "8": (8, 8),
    "4-8": (4, 8),
    "4": (4, 4),
}
"""Bits of the inner layers, and of the first and the last one, by the precision's name (the paper's section 5.2)."""


@dataclass(frozen=True, kw_only=True)
class AqtOptions:
    """Options of `adapt.learned.attach_aqt`, recorded as the run's policy."""

    steps: int
    weight_bits: int
    activation_bits: int
    first_bits: int
    last_bits: int


@dataclass(frozen=True, kw_only=True)
class ParetoSettings(ClassifierSettings):
    """Settings of a run from scratch under a one-cycle schedule; the rate and the decay are those of ResNet-20.

    Args:
        method: a name in `PRECISIONS`.
        multiplier: of the filters.
        blocks: of each stage; 3 is ResNet-20.
    """

    data_set: str = "cifar10"
    model: str = "resnet8"
    epochs: int = 4
    batch_size: int = 128
    lr: float = 0.1
    l2: float = 5e-4
    multiplier: float = 1.0
    blocks: int = 1

    def __post_init__(self) -> None:
        check_choice("method", self.method, tuple(PRECISIONS))
        super().__post_init__()

    @property
    def title(self) -> str:
        """Precision and multiplier."""
        return f"ResNet-{6 * self.blocks + 2} × {self.multiplier:g} at {named(self.method)}"

    @property
    def rounding(self) -> str:
        """Everything rounds to nearest."""
        return "nearest"

    def policy(self, steps_per_epoch: int) -> AqtOptions | None:
        """What decides the formats; None for bfloat16."""
        inner, ends = PRECISIONS[self.method]
        if self.method == "bfloat16":
            return None
        steps = self.epochs * steps_per_epoch
        return AqtOptions(
            steps=steps, weight_bits=inner, activation_bits=inner, first_bits=ends, last_bits=ends,
        )  # fmt: skip

    def recorded(self) -> dict[str, Any]:
        """The settings as checkpoints and ledgers store them, without those that these runs do not use."""
        unused = ("model", "l1", "buffer_bits")
        return {name: value for name, value in super().recorded().items() if name not in unused}


def named(precision: str) -> str:
    """What texts call a precision."""
    return {"8": "8 bits", "4": "4 bits", "4-8": "4 bits with 8-bit ends"}.get(precision, precision)


def network(settings: ParetoSettings, classes: int = 10) -> nn.Sequential:
    """The network of a run, with its first weights."""
    torch.manual_seed(settings.seed)
    return resnet(classes, blocks=settings.blocks, multiplier=settings.multiplier)


def costs(settings: ParetoSettings) -> dict[str, float]:
    """AQT 4.3: multiply-adds of one picture, their linear and quadratic cost, and the bits of all weights."""
    model = network(settings)
    operations = perfmodel.operations(model, torch.zeros(1, 3, 32, 32))
    inner, ends = PRECISIONS[settings.method]
    bits = [ends, *[inner] * (len(operations) - 2), ends]
    numel = [model.get_parameter(name).numel() for name in operations]
    return {
        "operations": sum(operations.values()),
        "linear": perfmodel.network_cost(operations, bits, model="linear"),
        "quadratic": perfmodel.network_cost(operations, bits, model="quadratic"),
        "memory": perfmodel.weight_memory(numel, bits),
    }


def train(settings: ParetoSettings, splits: Splits, folder: Path | None, *, device: str, progress: bool) -> Run:
    """Train until `settings.epochs` are done, from the checkpoint in `folder` if there is one.

    Products of training are computed in bfloat16 for every precision. Evaluation multiplies the rounded values of
    quantised networks in float32, and that of the bfloat16 network in bfloat16.

    Raises:
        ValueError: there are fewer pictures than the subset or a batch needs, the folder holds another run, or the loss
            became NaN.
    """
    batches, test_batches = make_batches(settings, splits, device)
    inner = network(settings, splits[0].classes).to(device=device, memory_format=torch.channels_last)
    model = Bfloat16(inner, always=settings.method == "bfloat16")
    optimizer = make_sgd(settings, model)
    options = settings.policy(len(batches))
    controller = None if options is None else attach_aqt(optimizer, model, **vars(options))
    schedule = make_schedule(settings, optimizer, settings.epochs * len(batches))
    example = torch.zeros(1, *splits[0].shape, device=device)
    run = Run(settings, model, optimizer, controller, schedule, example)
    return training.train(run, batches, partial(evaluate, batches=test_batches), folder, progress=progress)


def finish(settings: ParetoSettings, splits: Splits, out: Path, *, device: str, progress: bool) -> ledger.Line:
    """Train to the end, from the last whole epoch of an interrupted run; append the line to `out` and return it."""
    path = out / LEDGER
    identity = settings.identity(settings.steps_per_epoch(len(splits[0])))
    folder = checkpoint_folder(path, identity)
    run = train(settings, splits, folder, device=device, progress=progress)
    mean, deviation = splits[0].first(settings.subset).statistics()
    seen = splits[0].first(min(GAP_PICTURES, settings.subset or len(splits[0]))).to(device)
    training_loss = evaluate(run.model, Batches(seen, 500, mean, deviation))["test_loss"]
    line = {
        **identity,
        **outcome(run, "accuracy"),
        **costs(settings),
        "train_loss": training_loss,
        "test_loss": run.history[-1]["test_loss"],
        "provenance": provenance(run, command(settings, device)),
    }
    ledger.append(path, line)
    shutil.rmtree(folder)
    return line


def command(settings: ParetoSettings, device: str) -> str:
    """The command that repeats this run, wherever its data are."""
    return commands.command(
        "pareto", "--precisions", settings.method, "--multipliers", f"{settings.multiplier:g}", "--blocks",
        settings.blocks, "--epochs", settings.epochs, "--batch-size", settings.batch_size, "--subset",
        settings.subset or 0, "--seeds", settings.seed, device=device,
    )  # fmt: skip
