"""A trace as a table for the terminal."""

import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapt.command_line import aligned
from adapt.report.summary import check_rows, overall, summary
from adapt.trace import Trace
from adapt.trace.widths import Widths

_WIDTH = 100
"""The most characters in a line of the run's settings."""


def table(trace: Trace, widths: Widths | None = None) -> str:
    """Return a line per layer: word length, fraction length, share of non-zeros and the policy's own columns.

    Each is given at the start, on average and at the end. The figures of the whole network and the settings of the
    run follow below.

    Args:
        trace: what happened.
        widths: the word lengths by channel of a run that learned them; the trace rounds their mean to whole bits.

    Raises:
        ValueError: the trace has no rows.
    """
    check_rows(trace)
    switches = trace.switches().sum(0)
    shown: dict[str, tuple[NDArray[Any], str, str]] = {
        "word length": (trace.word_length, "{:.0f}", "{:.1f}"),
        "fraction length": (trace.fraction_length, "{:.0f}", "{:.1f}"),
        "non-zero": (trace.nonzero, "{:.1%}", "{:.1%}"),
        **{
            name.replace("_", " "): (trace[name], *(("{:d}", "{:.1f}") if column.is_integer else ("{:.3g}",) * 2))
            for name, column in trace.own_columns.items()
        },
    }
    groups = [
        aligned([("start", "mean", "final"), *(_course(column, *forms) for column in values.T)], left=0)
        for values, *forms in shown.values()
    ]
    columns = [
        ["layer", "", *trace.layers],
        ["weights", "", *map("{:,}".format, trace.numel)],
        *([head.ljust(len(group[0])), *group] for head, group in zip(shown, groups, strict=True)),
        ["switches", "", *map(str, switches)],
    ]
    head, subhead, *body = aligned(list(zip(*columns, strict=True)), left=1, gap="    ")
    rule = "-" * max(map(len, (head, subhead, *body)))
    return "\n".join([head, subhead, rule, *body, "", *totals_lines(trace, widths), *_made_lines(trace)])


def totals_lines(trace: Trace, widths: Widths | None = None) -> list[str]:
    """Return a line for each figure of the whole network.

    Raises:
        ValueError: the trace has no rows.
    """
    figures = overall(trace, summary(trace, widths=widths))
    rows = "row" if len(trace) == 1 else "rows"
    lines = [
        ("rows", f"{len(trace)} {rows}, steps {trace.step[0]} to {trace.step[-1]}"),
        (
            "word length",
            f"{figures['run_mean_word_length']:.1f} bits on average, {figures['mean_word_length']:.1f} at the end",
        ),
        ("non-zero", f"{figures['run_nonzero']:.1%} on average, {figures['nonzero']:.1%} at the end"),
        (
            "packed size",
            f"{figures['bytes']:,} bytes, {figures['bytes'] / figures['float32_bytes']:.3f} of float32, at the end",
        ),
        ("modelled size", f"{figures['size_ratio']:.3f} of float32, zeros left out, at the end"),
        ("modelled memory", f"{figures['memory_ratio']:.3f} of float32, masters included, on average"),
    ]
    if figures["strategies"] is not None:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in figures["strategies"].items())
        lines.append(("push-up strategy", f"{shares} of the rows"))
    return [f"{name:<17}{value}" for name, value in lines]


def _made_lines(trace: Trace) -> list[str]:
    """Return the settings of the run as lines under one name."""
    made = textwrap.wrap(one_line(trace.run), _WIDTH)
    return [f"{'' if index else 'made by':<17}{line}" for index, line in enumerate(made)]


def one_line(value: object) -> str:
    """Return plain data as text in one line, without characters that a terminal might act upon."""
    if isinstance(value, Mapping):
        parts = {one_line(name): one_line(part) for name, part in value.items()}
        nested = {one_line(name) for name, part in value.items() if isinstance(part, Mapping)}
        return ", ".join(f"{name} ({part})" if name in nested else f"{name} {part}" for name, part in parts.items())
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(one_line, value))}]"
    return "".join(c if c.isprintable() else "?" for c in str(value))


def _course(values: NDArray[Any], single: str, average: str) -> tuple[str, str, str]:
    """Return the first value, the mean and the last value as text."""
    return single.format(values[0]), average.format(np.mean(values, dtype=np.float64)), single.format(values[-1])
