"""What is kept of a finished run: a line of the ledger with its costs, and a trace that is small enough to commit."""

import dataclasses
import platform
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import adapt
from adapt import perfmodel
from recipes.common import ledger
from recipes.common.costs import FORMS, summaries
from recipes.common.methods import description
from recipes.common.training import Run

TRACE_ROWS = 400
"""Rows that a committed trace may have; the costs of a line are computed from every step."""


def record(run: Run, identity: Mapping[str, Any], path: Path, *, score: str, command: str) -> ledger.Line:
    """Append a finished run's line to the JSON-lines file `path`, return it, and remove the run's checkpoint.

    The thinned trace goes to `traces/NAME.npz` beside the file.

    Args:
        identity: `Settings.identity`.
        score: the entry of the history whose last value is the run's result.
        command: the command that repeats this run.
    """
    operations = perfmodel.operations(run.model, run.example)
    costs = summaries(operations, run.trace, run.settings.batch_size)
    line = {
        **identity,
        **outcome(run, score),
        "hyperparameters": description(None if run.controller is None else run.controller.policy),
        "performance": {form: dataclasses.asdict(summary) for form, summary in costs.items()},
        "layers": _layers(run, operations),
        "history": _with_speedups(run, operations),
        "trace": None,
        "provenance": provenance(run, command),
    }
    if run.trace is not None:
        line["trace"] = f"traces/{run_name(identity)}.npz"
        (path.parent / "traces").mkdir(parents=True, exist_ok=True)
        selected(run.trace, thinned(len(run.trace), TRACE_ROWS)).save(path.parent / line["trace"])
    ledger.append(path, line)
    shutil.rmtree(checkpoint_folder(path, identity))
    return line


def outcome(run: Run, score: str) -> dict[str, Any]:
    """The part of a line that every recipe records alike."""
    return {
        score: run.history[-1][score],
        "seconds": sum(epoch["seconds"] for epoch in run.history),
        "parameters": sum(parameter.numel() for parameter in run.model.parameters()),
        "history": run.history,
    }


def provenance(run: Run, command: str | None = None) -> dict[str, Any]:
    """Where a result comes from: the command (by default the one being carried out), the versions, the machine."""
    return {
        "command": command or _running_command(),
        "adapt": adapt.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "device": run.device.type,
    }


def run_name(identity: Mapping[str, Any]) -> str:
    """A name for a run's files: what a reader looks for, and a digest of everything else."""
    settings = identity["settings"]
    words = [settings.get("data_set"), settings.get("model"), settings["method"], settings["seed"]]
    return "-".join(str(word) for word in [*words, ledger.digest(identity)] if word is not None)


def checkpoint_folder(path: Path, identity: Mapping[str, Any]) -> Path:
    """Where a run that will end as a line of `path` keeps its checkpoint."""
    return path.parent / "runs" / run_name(identity)


def thinned(rows: int, most: int) -> NDArray[np.int64]:
    """Evenly spaced rows, at most `most` of them, and the last row."""
    chosen = np.arange(0, rows, max(1, -(-rows // most)))
    return chosen if not rows or chosen[-1] == rows - 1 else np.append(chosen, rows - 1)


def selected(trace: adapt.Trace, rows: NDArray[np.int64]) -> adapt.Trace:
    """A trace of these rows alone."""
    columns = ("word_length", "fraction_length", "nonzero", "lookback", "resolution", "diversity", "divergence")
    part = adapt.Trace(trace.layers, trace.numel)
    part.append(trace.step[rows], **{name: getattr(trace, name)[rows] for name in columns})
    return part


def _layers(run: Run, operations: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    layers: dict[str, dict[str, Any]] = {
        name: {"weights": run.model.get_parameter(name).numel(), "operations": count}
        for name, count in operations.items()
    }
    if run.trace is not None:
        for i, name in enumerate(run.trace.layers):
            layers[name] |= {
                "word_length": int(run.trace.word_length[-1, i]),
                "fraction_length": int(run.trace.fraction_length[-1, i]),
                "nonzero": round(float(run.trace.nonzero[-1, i]), 6),
            }
    return layers


def _with_speedups(run: Run, operations: Mapping[str, int]) -> list[dict[str, float]]:
    """The history with the training speedup up to each epoch, counted as in the paper's tables."""
    if run.trace is None:
        return [{**epoch, "training_speedup": 1.0} for epoch in run.history]
    running = perfmodel.RunningSummary(operations, batch_size=run.settings.batch_size, **FORMS["paper"])
    steps = len(run.trace) // len(run.history)
    return [
        {**epoch, "training_speedup": running.update(selected(run.trace, np.arange((i + 1) * steps))).training_speedup}
        for i, epoch in enumerate(run.history)
    ]


def _running_command() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    start = ["python", "-m", spec.parent] if spec is not None and spec.parent else ["python", sys.argv[0]]
    return shlex.join([*start, *sys.argv[1:]])
