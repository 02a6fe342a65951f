"""One run: the largest network within the budget at one precision, trained by LSQ, and the line that records it."""

import shutil
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import OneCycleLR

from adapt.learned import attach_lsq
from recipes.common import commands, ledger, training
from recipes.common.records import checkpoint_folder, outcome, provenance
from recipes.common.settings import Settings
from recipes.common.training import Run, decaying
from recipes.tradeoff.scaling import Scaled, largest
from recipes.tradeoff.tasks import Task, in_bfloat16

LONGEST, FLOAT = 8, 32
"""The longest words of LSQ, and the bits of float32."""
CALIBRATION = 4
"""Batches from which the activations' first steps are taken."""


@dataclass(frozen=True, kw_only=True)
class StepSizes:
    """Options of `adapt.learned.attach_lsq`, recorded as the run's policy."""

    weight_bits: int
    activation_bits: int | None


@dataclass(frozen=True, kw_only=True)
class TradeoffSettings(Settings):
    """Settings of a run from scratch by AdamW under a one-cycle schedule.

    Args:
        method: "lsq", or "float32" where the bits are 32.
        task: its name on the command line.
        budget: kB of 8000 bits.
        scaling: "compound" or "width".
        bits: b_p, 1 to 8 or 32.
        activation_bits: b_a, 1 to 8; 32 leaves activations in float32.
        subset: train on this much of the data; None: all.
    """

    task: str
    budget: float
    scaling: str
    bits: int
    activation_bits: int
    epochs: int = 4
    batch_size: int = 128
    lr: float = 4e-3
    weight_decay: float = 1e-2
    subset: int | None = None

    @property
    def title(self) -> str:
        """Task, scaling and bits."""
        return f"{self.task} within {self.budget:g} kB by {self.scaling}, {bits_in_words(self)}"

    @property
    def rounding(self) -> str:
        """Everything rounds to nearest."""
        return "nearest"

    def policy(self, steps_per_epoch: int) -> StepSizes | None:
        """What decides the formats; None for float32."""
        if self.bits == FLOAT:
            return None
        activations = self.activation_bits if self.activation_bits < FLOAT else None
        return StepSizes(weight_bits=self.bits, activation_bits=activations)

    def recorded(self) -> dict[str, Any]:
        """The settings as checkpoints and ledgers store them, without those that these runs do not use."""
        unused = ("l1", "l2", "buffer_bits")
        return {name: value for name, value in super().recorded().items() if name not in unused}


def bits_in_words(settings: TradeoffSettings) -> str:
    """The bits of parameters and activations, as "2 + 1 bits"; "2 bits" with activations in float32."""
    if settings.activation_bits == FLOAT:
        return f"{settings.bits} bits"
    return f"{settings.bits} + {settings.activation_bits - settings.bits} bits"


def plan(task: Task, name: str, options: Any) -> list[TradeoffSettings]:
    """The settings of all runs: scalings, bits of parameters, and bits of activations above them.

    Activations have at most LSQ's 8 bits, so that long words have fewer choices; float32 has none.
    """
    extras = options.extra_bits if options.extra_bits is not None else ([0, 1, 2] if task.activations else [])
    epochs = options.epochs or task.epochs
    subset = (task.subset if options.subset is None else options.subset) or None
    found = []
    for seed in options.seeds:
        for scaling in options.scalings:
            for bits in options.bits:
                widths = [bits + extra for extra in extras if bits + extra <= LONGEST] if bits < FLOAT else []
                for activation_bits in widths or [FLOAT]:
                    found.append(
                        TradeoffSettings(
                            method="lsq" if bits < FLOAT else "float32", task=name, budget=options.budget,
                            scaling=scaling, bits=bits, activation_bits=activation_bits, epochs=epochs,
                            lr=task.lr, weight_decay=task.weight_decay, subset=subset, seed=seed,
                        )
                    )  # fmt: skip
    return found


def scaled(task: Task, settings: TradeoffSettings) -> Scaled:
    """The largest network within the budget of a run.

    Raises:
        ValueError: none fits.
    """
    return largest(task.network, settings.budget, settings.bits, settings.activation_bits, settings.scaling)


def train(
    task: Task, settings: TradeoffSettings, size: Scaled, folder: Path | None, *, device: str, progress: bool
) -> Run:
    """Train until `settings.epochs` are done, from the checkpoint in `folder` if there is one.

    Raises:
        ValueError: the folder holds another run, or the loss became NaN.
    """
    torch.manual_seed(settings.seed)
    network, example = task.network(size.width, size.depth)
    model = in_bfloat16(network.to(device))
    batches = task.batches(seed=settings.seed, subset=settings.subset)
    optimizer = torch.optim.AdamW(decaying(model, settings.weight_decay), lr=settings.lr, betas=(0.9, 0.99))
    controller = None
    if (options := settings.policy(len(batches))) is not None:
        calibration = [x for x, _ in islice(batches, CALIBRATION)]
        controller = attach_lsq(
            optimizer, model, calibration, weight_bits=options.weight_bits, activation_bits=options.activation_bits
        )
    steps = settings.epochs * len(batches)
    schedule = OneCycleLR(optimizer, settings.lr, total_steps=steps, pct_start=0.1, cycle_momentum=False)
    run = Run(settings, model, optimizer, controller, schedule, example.to(device))
    return training.train(run, batches, task.evaluate, folder, progress=progress)


def finish(
    settings: TradeoffSettings, task: Task, size: Scaled, path: Path, *, device: str, progress: bool
) -> ledger.Line:
    """Train to the end, from the last whole epoch of an interrupted run; append the line to `path` and return it.

    Args:
        size: the network's, from `scaled`.
    """
    identity = settings.identity(1)
    folder = checkpoint_folder(path, identity)
    run = train(task, settings, size, folder, device=device, progress=progress)
    line = {
        **identity,
        **outcome(run, task.score),
        "scale": size.scale,
        "width": size.width,
        "depth": size.depth,
        "activation": size.footprint.activation,
        "kilobytes": size.footprint.kilobytes(settings.bits, settings.activation_bits),
        "provenance": provenance(run, command(settings, device)),
    }
    ledger.append(path, line)
    shutil.rmtree(folder)
    return line


def command(settings: TradeoffSettings, device: str) -> str:
    """The command that repeats this run, wherever its data are."""
    extra = (settings.activation_bits - settings.bits,) if settings.activation_bits < FLOAT else ()
    return commands.command(
        "tradeoff", "--task", settings.task, "--budget", f"{settings.budget:g}", "--scalings", settings.scaling,
        "--bits", settings.bits, "--extra-bits", *extra, "--epochs", settings.epochs, "--subset", settings.subset or 0,
        "--seeds", settings.seed, device=device,
    )  # fmt: skip
