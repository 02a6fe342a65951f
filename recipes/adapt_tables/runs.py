"""One run of a table's row: trained, counted, noted in a line, its trace kept small."""

import dataclasses
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import adapt
from adapt import perfmodel
from adapt.figures import thinned
from recipes.common import ledger
from recipes.common.data import Pictures
from recipes.common.methods import description, method, signature
from recipes.common.results import FORMS, summaries
from recipes.common.training import Run, Settings, policy, provenance, train

LEDGER = "adapt_tables.jsonl"
TRACE_ROWS = 400
"""Rows that a committed trace keeps; the figures of a line come from every step."""


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
    decided = identity(settings, len(splits[0]))
    name = f"{settings.data_set}-{settings.model}-{settings.method}-{settings.seed}-{ledger.digest(decided)}"
    folder = out / "runs" / name
    run = train(settings, splits, folder, device=device, progress=progress)
    line = {**decided, **_outcome(run, device)}
    if run.trace is not None:
        line["trace"] = f"traces/{name}.npz"
        (out / "traces").mkdir(parents=True, exist_ok=True)
        selected(run.trace, thinned(0, len(run.trace), TRACE_ROWS)).save(out / line["trace"])
    ledger.append(out / LEDGER, line)
    shutil.rmtree(folder)
    return line


def _outcome(run: Run, device: str) -> dict[str, Any]:
    settings, trace = run.settings, run.trace
    counts = perfmodel.operations(run.model, torch.zeros(1, *run.shape, device=device))
    sizes = {name: parameter.numel() for name, parameter in run.model.named_parameters()}
    layers: dict[str, dict[str, Any]] = {
        name: {"weights": sizes[name], "operations": count} for name, count in counts.items() if name in sizes
    }
    if trace is not None:
        for i, name in enumerate(trace.layers):
            layers[name] |= {
                "word_length": int(trace.word_length[-1, i]),
                "fraction_length": int(trace.fraction_length[-1, i]),
                "nonzero": round(float(trace.nonzero[-1, i]), 6),
            }
    forms = summaries(counts, trace, settings.batch_size)
    return {
        "accuracy": run.history[-1]["accuracy"],
        "seconds": sum(epoch["seconds"] for epoch in run.history),
        "parameters": sum(sizes.values()),
        "hyperparameters": description(None if run.controller is None else run.controller.policy),
        "performance": {form: dataclasses.asdict(summary) for form, summary in forms.items()},
        "layers": layers,
        "history": _with_speedups(run, counts),
        "trace": None,
        "provenance": {**provenance(), "command": command(settings, device), "device": device},
    }


def _with_speedups(run: Run, counts: dict[str, int]) -> list[dict[str, float]]:
    """The history, and in each epoch the training speedup up to there, counted as the paper's tables do."""
    if run.trace is None:
        return [{**epoch, "training_speedup": 1.0} for epoch in run.history]
    running = perfmodel.RunningSummary(counts, batch_size=run.settings.batch_size, **FORMS["paper"])
    steps = len(run.trace) // len(run.history)
    return [
        {**epoch, "training_speedup": running.update(selected(run.trace, np.arange((i + 1) * steps))).training_speedup}
        for i, epoch in enumerate(run.history)
    ]


def selected(trace: adapt.Trace, rows: NDArray[np.int64]) -> adapt.Trace:
    """The trace with these rows alone."""
    fields = (
        "word_length", "fraction_length", "nonzero", "lookback", "resolution", "diversity", "divergence",
    )  # fmt: skip
    part = adapt.Trace(trace.layers, trace.numel)
    part.append(trace.step[rows], **{name: getattr(trace, name)[rows] for name in fields})
    return part


def command(settings: Settings, device: str) -> str:
    """What makes this run alone, wherever its data lie."""
    words = [
        "python", "-m", "recipes.adapt_tables", f"{settings.data_set}-{settings.model}", "--methods", settings.method,
        "--seeds", settings.seed, "--epochs", settings.epochs, "--batch-size", settings.batch_size,
        "--schedule", settings.schedule, *(("--subset", settings.subset) if settings.subset else ()),
        "--device", device, "--threads", torch.get_num_threads(),
    ]  # fmt: skip
    return shlex.join(map(str, words))
