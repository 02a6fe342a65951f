"""One run of a table's row, and the line that records it."""

from pathlib import Path

from recipes.common import commands, ledger
from recipes.common.classification import ClassifierSettings, Splits, train
from recipes.common.records import checkpoint_folder, record

LEDGER = "adapt_tables.jsonl"


def finish(settings: ClassifierSettings, splits: Splits, out: Path, *, device: str, progress: bool) -> ledger.Line:
    """Train to the end, from the last whole epoch of an interrupted run; append the line and return it.

    Writes `adapt_tables.jsonl` and `traces/NAME.npz` in `out`; `runs/NAME/checkpoint.pt` is removed at the end.
    """
    identity, path = settings.identity(settings.steps_per_epoch(len(splits[0]))), out / LEDGER
    run = train(settings, splits, checkpoint_folder(path, identity), device=device, progress=progress)
    return record(run, identity, path, score="accuracy", command=command(settings, device))


def command(settings: ClassifierSettings, device: str) -> str:
    """The command that repeats this run, wherever its data are."""
    return commands.command(
        "adapt_tables", f"{settings.data_set}-{settings.model}", "--methods", settings.method,
        "--seeds", settings.seed, "--epochs", settings.epochs, "--batch-size", settings.batch_size,
        "--schedule", settings.schedule, *(("--subset", settings.subset) if settings.subset else ()), device=device,
    )  # fmt: skip
