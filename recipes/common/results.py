"""What a finished run cost and reached, as numbers and as a table."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import adapt
from adapt import files, perfmodel
from recipes.common.training import Run, provenance

COLUMNS = {
    "run": "{}",
    "accuracy": "{:.4f}",
    "mean_word_length": "{:.1f}",
    "size_ratio": "{:.2f}",
    "training_speedup": "{:.2f}",
    "inference_speedup": "{:.2f}",
    "seconds": "{:.0f}",
}
FLOAT32 = {
    **dict.fromkeys(("mean_word_length", "final_word_length"), 32.0),
    **dict.fromkeys(("nonzero", "size_ratio", "size_ratio_printed", "memory_ratio", "inference_speedup"), 1.0),
    **dict.fromkeys(("training_speedup", "training_speedup_physical", "training_speedup_printed"), 1.0),
}


def costs(
    model: nn.Module, shape: tuple[int, int, int], trace: adapt.Trace | None, batch_size: int
) -> dict[str, float]:
    """What the performance model says of a run, against float32 training of the same network.

    Args:
        shape: (channels, height, width) of a picture.
        trace: of the run; None for float32, of which every ratio and speedup is 1.

    Returns:
        mean_word_length in bits over all layers and steps, final_word_length over the layers at the end;
        nonzero, size_ratio and inference_speedup of the final model, memory_ratio of the run, all by elements;
        training_speedup with backward counted as in the paper, one product per layer, and the overhead of switching
        once per step; training_speedup_physical with the two products that backward takes; and the ratios of the
        paper's printed formulas, to which each layer counts alike: size_ratio_printed, training_speedup_printed.
    """
    if trace is None:
        return dict(FLOAT32)
    counts = perfmodel.operations(model, torch.zeros(1, *shape))
    paper, physical, printed = summaries(counts, trace, batch_size).values()
    return {
        "mean_word_length": float(trace.word_length.mean()),
        "final_word_length": float(trace.word_length[-1].mean()),
        "nonzero": paper.nonzero,
        "size_ratio": paper.size_ratio,
        "size_ratio_printed": printed.size_ratio,
        "memory_ratio": paper.memory_ratio,
        "inference_speedup": paper.inference_speedup,
        "training_speedup": paper.training_speedup,
        "training_speedup_physical": physical.training_speedup,
        "training_speedup_printed": printed.training_speedup,
    }


FORMS: dict[str, dict[str, Any]] = {"paper": {"backward_factor": 1}, "physical": {}, "printed": {"form": "paper"}}
"""How the performance model may count: backward as one product per layer, as the paper's tables do, but layers by their
elements; backward as the two products that it takes; and the paper's printed formulas, to which layers count alike."""


def summaries(
    operations: Mapping[str, int], trace: adapt.Trace | None, batch_size: int
) -> dict[str, perfmodel.Summary]:
    """The performance model's figures of a run in each of `FORMS`; trivial for float32, which has no trace."""
    if trace is None:
        float32 = perfmodel.Summary(1.0, 1.0, 1.0, 1.0, 32.0, 1.0, 32.0, 1.0)
        return dict.fromkeys(FORMS, float32)
    return {
        name: perfmodel.RunningSummary(operations, batch_size=batch_size, **form).update(trace)
        for name, form in FORMS.items()
    }


def report(run: Run, folder: Path) -> dict[str, Any]:
    """Write `result.json` and, where there is a trace, `trace.npz` and `timeline.png`; return the result."""
    settings, trace = run.settings, run.trace
    result = {
        "run": f"{settings.model} {settings.method}",
        "accuracy": run.history[-1]["accuracy"],
        "seconds": sum(epoch["seconds"] for epoch in run.history),
        **costs(run.model, run.shape, trace, settings.batch_size),
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "settings": dataclasses.asdict(settings),
        "history": run.history,
        **provenance(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    if trace is not None:
        from adapt.figures import timeline

        trace.save(folder / "trace.npz")
        timeline(trace).savefig(folder / "timeline.png")
    with files.replacing(folder / "result.json") as file:
        file.write((json.dumps(result, indent=1) + "\n").encode())
    return result


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as aligned text, one column per entry of `COLUMNS`; what a row lacks stays empty."""
    texts = [[name.replace("_", " ") for name in COLUMNS]]
    texts += [[form.format(row[name]) if name in row else "" for name, form in COLUMNS.items()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    lines = []
    for first, *others in texts:
        cells = (text.rjust(width) for text, width in zip(others, widths[1:], strict=True))
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])
