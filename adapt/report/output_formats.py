"""The figures of runs as JSON, Markdown and CSV: the same numbers in each."""

import csv
import io
import json
import math
from collections.abc import Sequence
from typing import Any

from adapt.report.summary import Row
from adapt.report.text import one_line

_TOTALS = {
    "last_step": "steps",
    "mean_word_length": "bits",
    "bytes": "bytes",
    "float32_bytes": "float32 bytes",
    "nonzero": "non-zero",
    "moves": "moves",
    "modelled_inference_speedup": "modelled speedup",
}
_LAYERS = {
    "layer": "layer",
    "weights": "weights",
    "word_length_first": "first bits",
    "word_length_mean": "mean bits",
    "word_length_last": "last bits",
    "fraction_length_last": "fraction",
    "nonzero_last": "non-zero",
    "moves": "moves",
    "bytes": "bytes",
    "modelled_share": "modelled cost",
    "strategy": "strategy",
    "divergence": "divergence",
    "rounding_cost": "rounding cost",
}


def as_json(runs: Sequence[Row]) -> str:
    """Return everything, as strict JSON: None, NaN and infinities are null."""
    return json.dumps({"format": "adapt.report", "version": 1, "runs": finite(runs)}, indent=2, ensure_ascii=False)


def as_csv(runs: Sequence[Row]) -> str:
    """Return a line for every layer of every run. Unknown figures are empty cells."""
    out = io.StringIO()
    names = ["run", *dict.fromkeys(name for run in runs for row in run["layers"] for name in row)]
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    for run in runs:
        writer.writerows({"run": run["run"], **row} for row in run["layers"])
    return out.getvalue().rstrip("\n")


def as_markdown(runs: Sequence[Row]) -> str:
    """Return a table of the runs and one of each run's layers. Costs and speedups are modelled."""
    parts = ["# Runs", _table(["run", *_TOTALS.values()], [[r["run"], *_cells(r["totals"], _TOTALS)] for r in runs])]
    for run in runs:
        parts += [f"## {_escaped(run['run'])}"]
        parts += [f"- {_escaped(name)}: {_escaped(one_line(value))}" for name, value in run["made"].items()]
        layers = run["layers"]
        known = {name: head for name, head in _LAYERS.items() if any(row.get(name) is not None for row in layers)}
        parts.append(_table(list(known.values()), [_cells(row, known) for row in layers]))
    return "\n\n".join(parts)


def finite(value: Any) -> Any:
    """Return the same containers with None in place of numbers that JSON does not have."""
    if isinstance(value, dict):
        return {str(name): finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cells(row: Row, names: dict[str, str]) -> list[str]:
    return [_cell(name, row.get(name)) for name in names]


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "–"
    if name in ("nonzero", "nonzero_last", "modelled_share"):
        return f"{value:.1%}"
    if isinstance(value, float):
        return f"{value:.3g}" if name in ("divergence", "rounding_cost") else f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *([_escaped(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escaped(value: object) -> str:
    """Return a value as text in which nothing is markup for Markdown or HTML."""
    text = " ".join(str(value).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{c}" if c in "\\`*|[]" else c for c in text)
