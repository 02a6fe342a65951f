"""One run of a table's row: what decides how it goes, and how it is made."""

import dataclasses
import shlex
from pathlib import Path
from typing import Any

import torch

from adapt import perfmodel
from recipes.common import ledger
from recipes.common.conclusion import checkpoint_folder, conclude
from recipes.common.data import Pictures
from recipes.common.methods import method, signature
from recipes.common.training import Settings, policy, train

LEDGER = "adapt_tables.jsonl"


def identity(settings: Settings, pictures: int) -> dict[str, Any]:
    """All that decides how a run goes: what a finished run is recognised by.

    Args:
        pictures: of the training split, before `settings.subset` cuts it.
    """
    steps_per_epoch = (settings.subset or pictures) // settings.batch_size
    return {
        "settings": dataclasses.asdict(settings),
        "policy": signature(policy(settings, max(steps_per_epoch, 1))),
        "rounding": None if settings.method == "float32" else method(settings.method).rounding,
    }


def finish(
    settings: Settings, splits: tuple[Pictures, Pictures], out: Path, *, device: str, progress: bool
) -> ledger.Line:
    """Train until the end, from the last whole epoch of an earlier try; append the line and answer it.

    Writes `adapt_tables.jsonl` and `traces/NAME.npz` in `out`; `runs/NAME/checkpoint.pt` is there while the run lasts.
    """
    decided, path = identity(settings, len(splits[0])), out / LEDGER
    run = train(settings, splits, checkpoint_folder(path, decided), device=device, progress=progress)
    operations = perfmodel.operations(run.model, torch.zeros(1, *run.shape, device=device))
    return conclude(run, decided, operations, path, score="accuracy", command=command(settings, device))


def command(settings: Settings, device: str) -> str:
    """What makes this run alone, wherever its data lie."""
    words = [
        "python", "-m", "recipes.adapt_tables", f"{settings.data_set}-{settings.model}", "--methods", settings.method,
        "--seeds", settings.seed, "--epochs", settings.epochs, "--batch-size", settings.batch_size,
        "--schedule", settings.schedule, *(("--subset", settings.subset) if settings.subset else ()),
        "--device", device, "--threads", torch.get_num_threads(),
    ]  # fmt: skip
    return shlex.join(map(str, words))
