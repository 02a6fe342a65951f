"""A trace as a table and as pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapt.perfmodel.ratios import memory_ratio, size_ratio
from adapt.trace import Trace

_HEAD = ("layer", "weights", "word length", "", "", "fraction length", "", "", "non-zero", "", "", "switches")
_SUBHEAD = ("", "", *("start", "mean", "final") * 3, "")


def totals(trace: Trace) -> dict[str, float]:
    """Figures of the whole network that the trace alone tells, each weighted by the layers' sizes.

    Returns:
        mean_word_length (bits) and nonzero (share), both at the last row; run_mean_word_length and run_nonzero, their
        means over the rows; size_ratio, the final network's size over that in float32; memory_ratio, the memory that
        training takes for weights and masters over that in float32.

    Raises:
        ValueError: the trace has no rows.
    """
    _check_rows(trace)
    weights = trace.numel / trace.numel.sum()
    nonzero = trace.nonzero @ weights
    word_length = trace.mean_word_length()
    return {
        "run_mean_word_length": float(word_length.mean()),
        "mean_word_length": float(word_length[-1]),
        "run_nonzero": float(nonzero.mean()),
        "nonzero": float(nonzero[-1]),
        "size_ratio": float(size_ratio(trace.word_length[-1:], trace.nonzero[-1:], trace.numel)),
        "memory_ratio": float(memory_ratio(trace.word_length, trace.nonzero, trace.numel)),
    }


def table(trace: Trace) -> str:
    """A line per layer: word length, fraction length and share of non-zeros at the start, on average and at the end.

    Below the layers stand the totals of `totals`.

    Raises:
        ValueError: the trace has no rows.
    """
    figures = totals(trace)
    switches = trace.switches().sum(0)
    lines = [
        (
            name,
            f"{trace.numel[layer]:,}",
            *_course(trace.word_length[:, layer], "{:.0f}", "{:.1f}"),
            *_course(trace.fraction_length[:, layer], "{:.0f}", "{:.1f}"),
            *_course(trace.nonzero[:, layer], "{:.1%}", "{:.1%}"),
            str(switches[layer]),
        )
        for layer, name in enumerate(trace.layers)
    ]
    rows = "row" if len(trace) == 1 else "rows"
    summary = [
        ("rows", f"{len(trace)} {rows}, steps {trace.step[0]} to {trace.step[-1]}"),
        (
            "word length",
            f"{figures['run_mean_word_length']:.1f} bits on average, {figures['mean_word_length']:.1f} at the end",
        ),
        ("non-zero", f"{figures['run_nonzero']:.1%} on average, {figures['nonzero']:.1%} at the end"),
        ("size ratio", f"{figures['size_ratio']:.3f} of float32, at the end"),
        ("memory ratio", f"{figures['memory_ratio']:.3f} of float32, masters included, on average"),
    ]
    return "\n".join([*_aligned(lines), "", *(f"{name:<14}{value}" for name, value in summary)])


def save_pictures(trace: Trace, folder: str | Path) -> list[Path]:
    """Draw the heat map and the timeline as PNG files into the folder, made where it is missing.

    Raises:
        ImportError: matplotlib is missing; the message says what to install.
        OSError: the folder cannot be written.
        ValueError: the trace has no rows.
    """
    from adapt import figures

    _check_rows(trace)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "word_length_heatmap.png", folder / "timeline.png"]
    for path, draw in zip(paths, (figures.word_length_heatmap, figures.timeline), strict=True):
        draw(trace).savefig(path)
    return paths


def _check_rows(trace: Trace) -> None:
    if not len(trace):
        raise ValueError("the trace has no rows: no optimizer step was recorded")


def _course(values: NDArray[Any], single: str, average: str) -> tuple[str, str, str]:
    return single.format(values[0]), average.format(np.mean(values, dtype=np.float64)), single.format(values[-1])


def _aligned(lines: Sequence[tuple[str, ...]]) -> list[str]:
    """Names to the left, numbers to the right, a rule below the heads; a group's head stands over its columns."""
    widths = [max(map(len, column)) for column in zip(_SUBHEAD, *lines, strict=True)]
    widths[0], widths[1] = max(widths[0], len("layer")), max(widths[1], len("weights"))
    widths[-1] = max(widths[-1], len("switches"))
    gaps = ["" if column == 0 else "    " if _HEAD[column] else "  " for column in range(len(widths))]

    def join(cells: tuple[str, ...]) -> str:
        aligned = (
            gap + (cell.ljust(width) if column == 0 else cell.rjust(width))
            for column, (cell, width, gap) in enumerate(zip(cells, widths, gaps, strict=True))
        )
        return "".join(aligned).rstrip()

    head = [_HEAD[0].ljust(widths[0]), gaps[1] + _HEAD[1].rjust(widths[1])]
    for first in (2, 5, 8):
        span = sum(widths[first : first + 3]) + len("  ") * 2
        head.append(gaps[first] + _HEAD[first].ljust(span))
    head.append(gaps[-1] + _HEAD[-1].rjust(widths[-1]))
    body = [join(line) for line in lines]
    top = ["".join(head).rstrip(), join(_SUBHEAD)]
    return [*top, "-" * max(map(len, [*top, *body])), *body]
