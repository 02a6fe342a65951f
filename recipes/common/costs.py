"""What the performance model says of a run, and a table of it for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

import adapt
from adapt import perfmodel

FORMS: dict[str, dict[str, Any]] = {"paper": {"backward_factor": 1}, "physical": {}, "printed": {"form": "paper"}}
"""How the performance model may count. paper: backward as one product per layer, as in the paper's tables, and layers
by their elements; physical: backward as the two products that it takes; printed: the paper's formulas as printed, in
which all layers weigh the same."""

COLUMNS = {
    "run": ("run", "{}"),
    "accuracy": ("accuracy", "{:.4f}"),
    "mean_word_length": ("bits", "{:.1f}"),
    "size_ratio": ("modelled size", "{:.2f}"),
    "training_speedup": ("modelled training speedup", "{:.2f}"),
    "inference_speedup": ("modelled inference speedup", "{:.2f}"),
    "seconds": ("seconds", "{:.0f}"),
}
"""The columns of a table: a heading, and a form of its cells."""


def summaries(
    operations: Mapping[str, int], trace: adapt.Trace | None, batch_size: int
) -> dict[str, perfmodel.Summary]:
    """The performance model's figures of a run in each of `FORMS`, against float32 training of the same network.

    Args:
        operations: multiply-adds per sample, by layer.
        trace: of the run; None for float32, of which every ratio and speedup is 1.
    """
    if trace is None:
        return dict.fromkeys(FORMS, perfmodel.Summary(1.0, 1.0, 1.0, 1.0, 32.0, 1.0, 32.0, 1.0))
    return {
        name: perfmodel.RunningSummary(operations, batch_size=batch_size, **form).update(trace)
        for name, form in FORMS.items()
    }


def costs(model: nn.Module, example: Tensor, trace: adapt.Trace | None, batch_size: int) -> dict[str, float]:
    """The figures of `summaries` that tables show, by name.

    Returns:
        mean_word_length, bits of the average weight at the end, and run_mean_word_length, over all steps;
        nonzero, size_ratio and inference_speedup of the final model and memory_ratio of the run, in the form "paper";
        training_speedup in each form, and size_ratio also in the form "printed".
    """
    paper, physical, printed = summaries(perfmodel.operations(model, example), trace, batch_size).values()
    return {
        "mean_word_length": paper.mean_word_length,
        "run_mean_word_length": paper.run_mean_word_length,
        "nonzero": paper.nonzero,
        "size_ratio": paper.size_ratio,
        "size_ratio_printed": printed.size_ratio,
        "memory_ratio": paper.memory_ratio,
        "inference_speedup": paper.inference_speedup,
        "training_speedup": paper.training_speedup,
        "training_speedup_physical": physical.training_speedup,
        "training_speedup_printed": printed.training_speedup,
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as aligned text, one column per entry of `COLUMNS`; entries that a row lacks stay empty."""
    texts = [[heading for heading, _ in COLUMNS.values()]]
    texts += [[form.format(row[name]) if name in row else "" for name, (_, form) in COLUMNS.items()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    lines = []
    for first, *others in texts:
        cells = (text.rjust(width) for text, width in zip(others, widths[1:], strict=True))
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])
