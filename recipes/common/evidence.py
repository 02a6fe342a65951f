"""Finished runs by schedule, method and seed: means, standard errors, paired differences, tables."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from textwrap import fill
from typing import Any

from recipes.common import ledger
from recipes.common.methods import METHODS

Value = Callable[[ledger.Line], float]
Runs = Mapping[int, ledger.Line]
"""The lines of one method under one schedule, by seed."""

OWN = ("method", "seed", "lr", "l1", "l2", "momentum", "buffer_bits")
"""Settings in which runs that are compared may differ."""
NOTHING = "–"
NOT_RUN = "not run"


@dataclass(frozen=True)
class Figure:
    """A mean over seeds and its standard error, NaN for one seed."""

    mean: float
    error: float
    seeds: int

    @classmethod
    def of(cls, values: Iterable[float]) -> "Figure | None":
        """The figure of these values, None where there are none."""
        values = list(values)
        if not values:
            return None
        return cls(fmean(values), stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan, len(values))

    def text(self, form: str = ".2f") -> str:
        """The mean, and ± the standard error where seeds differ."""
        error = f" ± {self.error:{form.lstrip('+')}}" if self.error > 1e-9 else ""
        return f"{self.mean:{form}}{error}".replace("-", "−")


def gather(path: Path, order: Iterable[str] = METHODS) -> list[dict[str, dict[int, ledger.Line]]]:
    """The runs of a JSON-lines file by schedule, method and seed; methods in `order`, seeds ascending.

    Where a method's policy, rounding or rates changed between runs, the newest of them count alone.

    Raises:
        ValueError: the file is damaged.
    """
    found: dict[str, dict[str, dict[int, ledger.Line]]] = {}
    for line in ledger.read(path):
        settings = line["settings"]
        schedule = ledger.digest({name: value for name, value in settings.items() if name not in OWN})
        runs = found.setdefault(schedule, {}).setdefault(settings["method"], {})
        if any(_recipe(other) != _recipe(line) for other in runs.values()):
            runs.clear()
        runs[settings["seed"]] = line
    order = tuple(order)
    return [
        {name: dict(sorted(methods[name].items())) for name in order if name in methods} for methods in found.values()
    ]


def figure(runs: Runs, value: Value) -> Figure | None:
    """`value` over the seeds; None where there are no runs."""
    return Figure.of(map(value, runs.values()))


def difference(runs: Runs, others: Runs, value: Value) -> Figure | None:
    """`value` of each run less that of the other run with the same seed; None where no seed has both."""
    return Figure.of(value(runs[seed]) - value(others[seed]) for seed in sorted(runs.keys() & others.keys()))


def performance(form: str, name: str) -> Value:
    """Reads a figure of the performance model off a line."""
    return lambda line: float(line["performance"][form][name])


COSTS = {
    "bits at the end": ("mean_word_length", ".1f"),
    "bits on average": ("run_mean_word_length", ".1f"),
    "size ratio": ("size_ratio", ".3f"),
    "training speedup": ("training_speedup", ".2f"),
    "inference speedup": ("inference_speedup", ".2f"),
    "memory ratio": ("memory_ratio", ".2f"),
}
"""What the tables show of the performance model, by elements and with backward as the paper counts it; how it looks."""


def costs(runs: Runs) -> dict[str, str]:
    """A cell for each of `COSTS`."""
    return {title: text(figure(runs, performance("paper", name)), form) for title, (name, form) in COSTS.items()}


def text(figure: Figure | None, form: str = ".2f") -> str:
    """A figure as the tables show it."""
    return NOTHING if figure is None else figure.text(form)


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def paragraph(text: str) -> str:
    """A text in lines of 120 characters, as Markdown here has them."""
    return fill(text, 120, break_long_words=False, break_on_hyphens=False)


def seeds(methods: Iterable[Runs]) -> str:
    """How many runs stand behind the figures of some methods: "3 seeds", or "1 to 3 seeds"."""
    numbers = [len(runs) for runs in methods]
    fewest, most = min(numbers, default=0), max(numbers, default=0)
    return f"{most if fewest == most else f'{fewest} to {most}'} seed{'' if most == 1 else 's'}"


def sources(methods: Mapping[str, Runs], value: Value, form: str, unit: str) -> str:
    """The result of every run, and the command of each method's first."""
    return "\n".join(
        f"- {name}: {', '.join(f'{value(line):{form}}' for line in runs.values())} {unit} with the seeds "
        f"{', '.join(map(str, runs))}; the first by `{next(iter(runs.values()))['provenance']['command']}`"
        for name, runs in methods.items()
    )


def _recipe(line: ledger.Line) -> dict[str, Any]:
    settings = {name: value for name, value in line["settings"].items() if name != "seed"}
    return {"settings": settings, "policy": line["policy"], "rounding": line["rounding"]}
