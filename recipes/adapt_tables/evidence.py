"""The runs of the tables, by network and schedule."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.adapt_tables.rows import ROWS
from recipes.adapt_tables.runs import LEDGER
from recipes.common import evidence, ledger
from recipes.common.evidence import Figure, Runs


def percent(line: ledger.Line) -> float:
    """Accuracy in percent."""
    return 100 * float(line["accuracy"])


@dataclass(frozen=True)
class Group:
    """All runs of one network on one data set under one schedule, by method and seed."""

    methods: Mapping[str, Runs]

    def runs(self, method: str) -> Runs:
        """The runs of a method; none where it was not run."""
        return self.methods.get(method, {})

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of some run; all but its method, rates and seed are those of every run here."""
        runs = next(iter(self.methods.values()))
        settings: dict[str, Any] = next(iter(runs.values()))["settings"]
        return settings

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

    def difference(self, method: str) -> Figure | None:
        """Accuracy of a method less that of float32 with the same seed, in points; None where no seed has both."""
        return evidence.difference(self.runs(method), self.runs("float32"), percent)

    def iso_accuracy(self, method: str) -> Figure | None:
        """SU² of table 3: float32's whole cost over ours until the first epoch that is as accurate as float32's end.

        Seeds that never get there are left out; None where none does.
        """
        ours, float32 = self.runs(method), self.runs("float32")
        speedups = []
        for seed in sorted(ours.keys() & float32.keys()):
            epochs = ours[seed]["history"]
            for number, epoch in enumerate(epochs, 1):
                if epoch["accuracy"] >= float32[seed]["accuracy"]:
                    speedups.append(epoch["training_speedup"] * len(epochs) / number)
                    break
        return Figure.of(speedups)


def gather(folder: Path) -> list[Group]:
    """The groups of `folder`'s results, in the order of `ROWS`.

    Raises:
        ValueError: the file of results is damaged.
    """
    order = list(ROWS)
    groups = [Group(methods) for methods in evidence.gather(folder / LEDGER)]
    return sorted(groups, key=lambda group: (order.index("-".join(group.key)), group.schedule))
