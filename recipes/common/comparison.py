"""Comparisons of finished runs: means over seeds, standard errors, paired differences and tables."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from recipes.common import ledger
from recipes.common.methods import METHODS

Value = Callable[[ledger.Line], float]
Runs = Mapping[int, ledger.Line]
"""The lines of one method under one schedule, by seed."""

VARYING = ("method", "seed", "lr", "l1", "l2", "momentum", "buffer_bits")
"""Settings in which runs that are compared may differ."""
NOTHING = "–"
NOT_RUN = "not run"


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and its standard error, which is NaN for one seed."""

    mean: float
    error: float
    seeds: int

    @classmethod
    def of(cls, values: Iterable[float]) -> "Estimate | None":
        """The estimate from these values; None if there are none."""
        values = list(values)
        if not values:
            return None
        return cls(fmean(values), stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan, len(values))

    def text(self, form: str = ".2f") -> str:
        """The mean, and ± the standard error if seeds differ."""
        error = f" ± {self.error:{form.lstrip('+')}}" if self.error > 1e-9 else ""
        return f"{self.mean:{form}}{error}".replace("-", "−")


@dataclass(frozen=True)
class Experiment:
    """All runs of one network on one data set under one schedule, by method and seed."""

    methods: Mapping[str, Runs]

    def runs(self, method: str) -> Runs:
        """The runs of a method, which may be none."""
        return self.methods.get(method, {})

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of one of the runs; the others differ from it in `VARYING` alone."""
        runs = next(iter(self.methods.values()))
        settings: dict[str, Any] = next(iter(runs.values()))["settings"]
        return settings


def gather(path: Path, order: Iterable[str] = METHODS) -> list[dict[str, dict[int, ledger.Line]]]:
    """The runs of a JSON-lines file by schedule, method and seed; methods in `order`, seeds ascending.

    If a method's policy, rounding or rates changed between runs, only the newest of them count.

    Raises:
        ValueError: the file is damaged.
    """
    found: dict[str, dict[str, dict[int, ledger.Line]]] = {}
    for line in ledger.read(path):
        settings = line["settings"]
        schedule = ledger.digest({name: value for name, value in settings.items() if name not in VARYING})
        runs = found.setdefault(schedule, {}).setdefault(settings["method"], {})
        if any(_recipe(other) != _recipe(line) for other in runs.values()):
            runs.clear()
        runs[settings["seed"]] = line
    order = tuple(order)
    return [
        {name: dict(sorted(methods[name].items())) for name in order if name in methods} for methods in found.values()
    ]


def estimate(runs: Runs, value: Value) -> Estimate | None:
    """The mean of `value` over the seeds; None if there are no runs."""
    return Estimate.of(map(value, runs.values()))


def difference(runs: Runs, others: Runs, value: Value) -> Estimate | None:
    """`value` of each run minus that of the other run with the same seed; None if no seed has both."""
    return Estimate.of(value(runs[seed]) - value(others[seed]) for seed in sorted(runs.keys() & others.keys()))


def ratio(runs: Runs, others: Runs, value: Value) -> Estimate | None:
    """`value` of each run divided by that of the other run with the same seed; None if no seed has both."""
    return Estimate.of(value(runs[seed]) / value(others[seed]) for seed in sorted(runs.keys() & others.keys()))


def performance(form: str, name: str) -> Value:
    """What reads one of the performance model's figures from a line."""
    return lambda line: float(line["performance"][form][name])


COSTS = {
    "bits at the end": ("mean_word_length", ".1f"),
    "bits on average": ("run_mean_word_length", ".1f"),
    "modelled size": ("size_ratio", ".3f"),
    "modelled training speedup": ("training_speedup", ".2f"),
    "modelled inference speedup": ("inference_speedup", ".2f"),
    "modelled memory": ("memory_ratio", ".2f"),
}
"""The performance model's figures that tables show, in the form "paper", and their number formats."""


def costs(runs: Runs) -> dict[str, str]:
    """A cell for each of `COSTS`."""
    return {title: text(estimate(runs, performance("paper", name)), form) for title, (name, form) in COSTS.items()}


def text(estimate: Estimate | None, form: str = ".2f") -> str:
    """An estimate as the tables show it."""
    return NOTHING if estimate is None else estimate.text(form)


def seeds(methods: Iterable[Runs]) -> str:
    """How many seeds these methods were run with: "3 seeds" or "1 to 3 seeds"."""
    numbers = [len(runs) for runs in methods]
    fewest, most = min(numbers, default=0), max(numbers, default=0)
    return f"{most if fewest == most else f'{fewest} to {most}'} seed{'' if most == 1 else 's'}"


def sources(methods: Mapping[str, Runs], value: Value, form: str, unit: str) -> str:
    """The result of every run, and the command of each method's first one."""
    return "\n".join(
        f"- {name}: {', '.join(f'{value(line):{form}}' for line in runs.values())} {unit} with the seeds "
        f"{', '.join(map(str, runs))}; the first by `{next(iter(runs.values()))['provenance']['command']}`"
        for name, runs in methods.items()
    )


def _recipe(line: ledger.Line) -> dict[str, Any]:
    settings = {name: value for name, value in line["settings"].items() if name != "seed"}
    return {"settings": settings, "policy": line["policy"], "rounding": line["rounding"]}
