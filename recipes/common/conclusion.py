"""From a finished run to the line that tells of it, with what it cost, and a trace small enough to be kept."""

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import adapt
from adapt import perfmodel
from adapt.figures import thinned
from recipes.common import ledger
from recipes.common.methods import description
from recipes.common.results import FORMS, summaries
from recipes.common.training import Run, provenance

TRACE_ROWS = 400
"""Rows that a trace keeps; the figures of a line come from every step."""


def conclude(
    run: Run, identity: Mapping[str, Any], operations: Mapping[str, int], path: Path, *, score: str, command: str
) -> ledger.Line:
    """Append a finished run's line to the JSON-lines file `path`, answer it, and remove the run's checkpoint.

    The thinned trace goes to `traces/NAME.npz` beside the file.

    Args:
        identity: all that decided how the run went.
        operations: multiply-adds per sample, by layer.
        score: the entry of the history whose last value is the run's result.
        command: what makes this run again.
    """
    name = run_name(identity)
    sizes = {name: parameter.numel() for name, parameter in run.model.named_parameters()}
    forms = summaries(operations, run.trace, run.settings.batch_size)
    line = {
        **identity,
        score: run.history[-1][score],
        "seconds": sum(epoch["seconds"] for epoch in run.history),
        "parameters": sum(sizes.values()),
        "hyperparameters": description(None if run.controller is None else run.controller.policy),
        "performance": {form: dataclasses.asdict(summary) for form, summary in forms.items()},
        "layers": _layers(run.trace, sizes, operations),
        "history": _with_speedups(run, operations),
        "trace": None,
        "provenance": {**provenance(), "command": command, "device": next(run.model.parameters()).device.type},
    }
    if run.trace is not None:
        line["trace"] = f"traces/{name}.npz"
        (path.parent / "traces").mkdir(parents=True, exist_ok=True)
        selected(run.trace, thinned(0, len(run.trace), TRACE_ROWS)).save(path.parent / line["trace"])
    ledger.append(path, line)
    shutil.rmtree(checkpoint_folder(path, identity))
    return line


def run_name(identity: Mapping[str, Any]) -> str:
    """A name for the files of a run: what a reader looks for, and a digest of all the rest."""
    settings = identity["settings"]
    words = [settings.get("data_set"), settings.get("model"), settings["method"], settings["seed"]]
    return "-".join(str(word) for word in [*words, ledger.digest(identity)] if word is not None)


def checkpoint_folder(path: Path, identity: Mapping[str, Any]) -> Path:
    """Where a run that will end as a line of `path` keeps its checkpoint."""
    return path.parent / "runs" / run_name(identity)


def selected(trace: adapt.Trace, rows: NDArray[np.int64]) -> adapt.Trace:
    """The trace with these rows alone."""
    fields = (
        "word_length", "fraction_length", "nonzero", "lookback", "resolution", "diversity", "divergence",
    )  # fmt: skip
    part = adapt.Trace(trace.layers, trace.numel)
    part.append(trace.step[rows], **{name: getattr(trace, name)[rows] for name in fields})
    return part


def _layers(
    trace: adapt.Trace | None, sizes: Mapping[str, int], operations: Mapping[str, int]
) -> dict[str, dict[str, Any]]:
    layers: dict[str, dict[str, Any]] = {
        name: {"weights": sizes[name], "operations": count} for name, count in operations.items()
    }
    if trace is not None:
        for i, name in enumerate(trace.layers):
            layers[name] |= {
                "word_length": int(trace.word_length[-1, i]),
                "fraction_length": int(trace.fraction_length[-1, i]),
                "nonzero": round(float(trace.nonzero[-1, i]), 6),
            }
    return layers


def _with_speedups(run: Run, operations: Mapping[str, int]) -> list[dict[str, float]]:
    """The history, and in each epoch the training speedup up to there, counted as the paper's tables do."""
    if run.trace is None:
        return [{**epoch, "training_speedup": 1.0} for epoch in run.history]
    running = perfmodel.RunningSummary(operations, batch_size=run.settings.batch_size, **FORMS["paper"])
    steps = len(run.trace) // len(run.history)
    return [
        {**epoch, "training_speedup": running.update(selected(run.trace, np.arange((i + 1) * steps))).training_speedup}
        for i, epoch in enumerate(run.history)
    ]
