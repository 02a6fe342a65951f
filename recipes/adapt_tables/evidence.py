"""Finished runs put in order: by network and schedule, method and seed; means, standard errors, paired differences."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from recipes.adapt_tables.rows import ROWS
from recipes.adapt_tables.runs import LEDGER
from recipes.common import ledger
from recipes.common.methods import METHODS

Value = Callable[[ledger.Line], float]


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
        """The mean, and ± the standard error where there is one."""
        error = "" if math.isnan(self.error) else f" ± {self.error:{form.lstrip('+')}}"
        return f"{self.mean:{form}}{error}".replace("-", "−")


@dataclass(frozen=True)
class Group:
    """All runs of one network under one schedule.

    Args:
        settings: of any of the runs; the method, its rates and the seed do not count.
        methods: lines by method and seed.
    """

    settings: dict[str, Any]
    methods: dict[str, dict[int, ledger.Line]]

    @property
    def key(self) -> tuple[str, str]:
        """Data set and network."""
        return self.settings["data_set"], self.settings["model"]

    @property
    def schedule(self) -> str:
        """Epochs, batch size, pictures and the shape of the schedule."""
        now = self.settings
        pictures = f", {now['subset']:,} pictures" if now["subset"] else ""
        return f"{now['epochs']} epochs, batch {now['batch_size']}{pictures}, {now['schedule']}"

    def figure(self, method: str, value: Value) -> Figure | None:
        """`value` over the seeds of a method; None where it was not run."""
        return Figure.of(map(value, self.methods.get(method, {}).values()))

    def difference(self, method: str) -> Figure | None:
        """Accuracy of a method less that of float32 with the same seed, in points; None where no seed has both."""
        ours, float32 = self.methods.get(method, {}), self.methods.get("float32", {})
        return Figure.of(100 * (ours[seed]["accuracy"] - float32[seed]["accuracy"]) for seed in ours.keys() & float32)

    def iso_accuracy(self, method: str) -> Figure | None:
        """SU² of table 3: float32's whole cost over ours until the first epoch that is as accurate as float32's end.

        Seeds that never get there are left out; None where none does.
        """
        ours, float32 = self.methods.get(method, {}), self.methods.get("float32", {})
        speedups = []
        for seed in sorted(ours.keys() & float32):
            epochs = ours[seed]["history"]
            for number, epoch in enumerate(epochs, 1):
                if epoch["accuracy"] >= float32[seed]["accuracy"]:
                    speedups.append(epoch["training_speedup"] * len(epochs) / number)
                    break
        return Figure.of(speedups)


def gather(folder: Path) -> list[Group]:
    """The groups of `folder`'s results, in the order of `ROWS`.

    Where a method's policy, rounding or rates changed between runs, the newest of them count alone.

    Raises:
        ValueError: the file of results is damaged.
    """
    own = ("method", "seed", "lr", "l1", "l2", "momentum", "buffer_bits")
    found: dict[str, dict[str, dict[int, ledger.Line]]] = {}
    for line in ledger.read(folder / LEDGER):
        settings = line["settings"]
        schedule = ledger.digest({name: value for name, value in settings.items() if name not in own})
        runs = found.setdefault(schedule, {}).setdefault(settings["method"], {})
        if any(_recipe(other) != _recipe(line) for other in runs.values()):
            runs.clear()
        runs[settings["seed"]] = line
    groups = []
    for methods in found.values():
        ordered = {name: dict(sorted(methods[name].items())) for name in METHODS if name in methods}
        settings = next(line["settings"] for runs in ordered.values() for line in runs.values())
        groups.append(Group(settings, ordered))
    order = list(ROWS)
    return sorted(groups, key=lambda group: (order.index("-".join(group.key)), group.schedule))


def _recipe(line: ledger.Line) -> dict[str, Any]:
    settings = {name: value for name, value in line["settings"].items() if name != "seed"}
    return {"settings": settings, "policy": line["policy"], "rounding": line["rounding"]}
