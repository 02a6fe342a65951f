"""What a finished run cost and reached, as numbers and as a table."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import adapt
from adapt import perfmodel
from recipes.common import files
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


def costs(
    model: nn.Module, shape: tuple[int, int, int], trace: adapt.Trace | None, batch_size: int
) -> dict[str, float]:
    """What the performance model says of a run, against float32 training of the same network.

    Args:
        shape: (channels, height, width) of a picture.
        trace: of the run; None for float32, of which every ratio and speedup is 1.

    Returns:
        mean_word_length over layers and steps, final_word_length over layers, both in bits;
        size_ratio of the final model, by elements, and memory_ratio of the run;
        inference_speedup of the final model;
        training_speedup with a backward pass that counts one product per layer, as the paper does, and
        training_speedup_physical with the two products that it really takes.
    """
    if trace is None:
        speedups = ("training_speedup", "training_speedup_physical", "inference_speedup")
        ones = dict.fromkeys(("size_ratio", "memory_ratio", *speedups), 1.0)
        return {"mean_word_length": 32.0, "final_word_length": 32.0, **ones}
    counts = perfmodel.operations(model, torch.zeros(1, *shape))
    operations = [counts[layer] for layer in trace.layers]
    course = trace.word_length, trace.nonzero
    switching = perfmodel.switching_cost(trace.numel, trace.nonzero, trace.lookback, trace.resolution)
    speedup, physical = (
        perfmodel.training_speedup(
            operations, *course, batch_size=batch_size, overhead=switching, backward_factor=products
        )
        for products in (1, 2)
    )
    return {
        "mean_word_length": float(trace.word_length.mean()),
        "final_word_length": float(trace.word_length[-1].mean()),
        "size_ratio": perfmodel.size_ratio(*course, trace.numel),
        "memory_ratio": perfmodel.memory_ratio(*course, trace.numel),
        "training_speedup": speedup,
        "training_speedup_physical": physical,
        "inference_speedup": perfmodel.inference_speedup(operations, *course),
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
    if trace is not None:
        from adapt.figures import timeline

        folder.mkdir(parents=True, exist_ok=True)
        trace.save(folder / "trace.npz")
        timeline(trace).savefig(folder / "timeline.png")
    files.write_json(folder / "result.json", result)
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
