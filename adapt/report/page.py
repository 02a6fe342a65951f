"""One self-contained HTML page about several runs: it loads nothing, and works without a network.

Everything that comes from a run travels as JSON in which no character can end a script, and the page's own script shows
it as text, never as HTML. The page's content security policy forbids every other script and every connection.
"""

import base64
import hashlib
import json
import math
import os
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

import adapt
from adapt.numerics import LOWEST_FRACTION
from adapt.report.output_formats import finite
from adapt.report.runs import Run
from adapt.report.summary import Row, strategy_name
from adapt.trace import Trace
from adapt.trace.description import flat
from adapt.trace.display import thinned

COLUMNS = 1000
"""The most steps in a heat map of formats; if fewer steps change a format, it shows each of them."""

_POINTS = 300
"""The most steps in other curves."""

_MOVES = 20
"""How many of each layer's latest moves the page lists."""

_SCRIPTS = ("dom.js", "charts.js", "heatmap.js", "tables.js", "layers.js", "page.js")


def as_html(runs: Sequence[Run]) -> str:
    """Return the page about the runs, in the order given.

    Raises:
        ValueError: a trace has no rows.
    """
    labels = _labels([run.name for run in runs])
    content = {
        "version": adapt.__version__,
        "runs": [_content(run) | {"label": label} for run, label in zip(runs, labels, strict=True)],
    }
    data = json.dumps(finite(content), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        data = data.replace(character, f"\\u{ord(character):04x}")
    folder = files(__package__) / "html"
    html = (folder / "page.html").read_text(encoding="utf-8")
    style = (folder / "page.css").read_text(encoding="utf-8")
    script = "\n".join((folder / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    # The data comes last, so that nothing in it is mistaken for a place to fill.
    for place, text in (
        ("{style}", style),
        ("{script}", script),
        ("{style-hash}", _hash(style)),
        ("{script-hash}", _hash(script)),
        ("{data}", data),
    ):
        html = html.replace(place, text, 1)
    return html


def _hash(text: str) -> str:
    """Return how a content security policy names a text that it allows."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _labels(names: Sequence[str]) -> list[str]:
    """Return the names without the folders that all of them share."""
    if len(set(names)) < 2:
        return list(names)
    try:
        shared = os.path.commonpath(names)
    except ValueError:  # absolute and relative paths, or several drives
        return list(names)
    return [os.path.relpath(name, shared) if shared else name for name in names]


def _content(run: Run) -> Row:
    """Return what the page shows about a run."""
    trace = run.trace
    few = thinned(0, len(trace), _POINTS)
    return run.figures() | {
        "made": [
            [name, ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)]
            for name, value in flat(run.made, " ").items()
        ],
        "own": {name: [_figure(values[-1]) for values in trace[name].T] for name in trace.own_columns},
        "map": _map(trace),
        "step": trace.step[few].tolist(),
        "mean": np.round(trace.mean_word_length()[few], 3).tolist(),
        "mean_zeros": np.round(1 - trace.nonzero[few] @ (trace.numel / trace.numel.sum()), 5).tolist(),
        "zeros": _packed(np.rint(100 * (1 - trace.nonzero[few].astype(np.float64)))),
        "moved": [_moves(trace, layer) for layer in range(len(trace.layers))],
        "curves": {name: [steps, values] for name, (steps, values) in run.metrics.items()},
        "channels": _channels(run),
        "packed_file": run.packed_file,
    }


def _map(trace: Trace) -> Row:
    """Return the formats at those steps where one changes, or at evenly spaced ones where that would be too many."""
    rows = np.flatnonzero(trace.switches().any(axis=1))
    rows = np.insert(rows, 0, 0)
    complete = len(rows) <= COLUMNS
    if not complete:
        rows = thinned(0, len(trace), COLUMNS)
    return {
        "step": trace.step[rows].tolist(),
        "end": int(trace.step[-1]) + 1,
        "complete": complete,
        "bits": _packed(trace.word_length[rows]),
        "fraction": _packed(trace.fraction_length[rows] - LOWEST_FRACTION),
        "lowest_fraction": LOWEST_FRACTION,
    }


def _packed(values: NDArray[Any]) -> str:
    """Return numbers 0 to 255 [rows, layers], layer by layer, as base64."""
    return base64.b64encode(np.ascontiguousarray(values.T, np.uint8).tobytes()).decode("ascii")


def _moves(trace: Trace, layer: int) -> list[list[float | str | None]]:
    """Return a layer's latest moves.

    Of each: step, word and fraction length before and after, strategy, Δs, divergence, rounding cost, and the policy's
    own columns.
    """
    words, fractions = trace.word_length[:, layer], trace.fraction_length[:, layer]
    moved = np.flatnonzero((words[1:] != words[:-1]) | (fractions[1:] != fractions[:-1]))[-_MOVES:] + 1
    why = [trace[name][:, layer] for name in ("diversity", "divergence", "rounding_cost", *trace.own_columns)]
    return [
        [
            int(trace.step[row]),
            *(int(lengths[at]) for at in (row - 1, row) for lengths in (words, fractions)),
            strategy_name(trace.strategy[row, layer]),
            *(_figure(column[row]) for column in why),
        ]
        for row in moved.tolist()
    ]


def _figure(value: Any) -> float | str | None:
    """Return a number of a trace with four digits: "∞" for infinity, None for NaN."""
    number = float(value)
    if math.isinf(number):
        return "∞" if number > 0 else "−∞"
    return None if math.isnan(number) else float(f"{number:.4g}")


def _channels(run: Run) -> list[Row]:
    """Return the final word lengths of every tensor with learned widths, by channel, and their exact mean."""
    widths = run.widths
    if widths is None or not len(widths):
        return []
    return [
        {
            "tensor": name,
            "elements": int(widths.sizes(name).sum()),
            "mean": float(mean),
            "bits": widths.of(name)[-1].tolist(),
        }
        for name, mean in zip(widths.names, widths.means()[-1], strict=True)
    ]
