"""Rows of the benchmark, as a Markdown table and as JSON."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.timing import Ratio

Measured = Ratio | str
"""A measurement, or the reason why there is none."""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        key: identifies the row in the JSON, unique.
        what: what was measured, compared with what.
        value: the measurement.
        unit: "×" or "%".
        target: the largest acceptable value; None if there is no target.
        peers: the same measurement with other software.
        note: a remark for the reader.
    """

    key: str
    what: str
    value: Measured
    unit: str = "×"
    target: float | None = None
    peers: Mapping[str, Measured] = field(default_factory=dict)
    note: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the target is met; None if there is no target or no measurement."""
        if self.target is None or isinstance(self.value, str):
            return None
        return self.value.value <= self.target


def as_json(machine: Mapping[str, Any], clock: str, rows: Iterable[Row]) -> dict[str, Any]:
    """The whole benchmark in plain containers."""
    return {"machine": dict(machine), "clock": clock, "rows": [{**asdict(row), "reached": row.reached} for row in rows]}


def as_markdown(rows: Sequence[Row]) -> str:
    """The table, with the quartiles of the paired ratios in brackets."""
    lines = ["| what | here | target | reached | others |", "|---|---|---|---|---|"]
    for row in rows:
        target = "–" if row.target is None else f"≤ {row.target:g} {row.unit}"
        reached = {None: "–", True: "yes", False: "no"}[row.reached]
        peers = "; ".join(f"{name} {_short(value, row.unit)}" for name, value in row.peers.items()) or "–"
        lines.append(f"| {row.what} | {_full(row.value, row.unit)} | {target} | {reached} | {peers} |")
    notes = dict.fromkeys(f"{row.key}: {row.note}" for row in rows if row.note)
    return "\n".join([*lines, "", *notes]).rstrip()


def _number(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


def _full(value: Measured, unit: str) -> str:
    if isinstance(value, str):
        return value
    if value.lower == value.upper:
        return f"{_number(value.value)} {unit}"
    return f"{_number(value.value)} {unit} ({_number(value.lower)}–{_number(value.upper)})"


def _short(value: Measured, unit: str) -> str:
    return value if isinstance(value, str) else f"{_number(value.value)} {unit}"
