"""The runs of the study, by schedule, precision and multiplier."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from recipes.common import ledger
from recipes.common.comparison import Estimate
from recipes.common.dominance import Point
from recipes.pareto.runs import PRECISIONS, named

COSTS = {"linear": "linear cost", "quadratic": "quadratic cost", "memory": "weight memory"}
"""The costs that are compared, as lines and as texts name them."""


class Network(NamedTuple):
    """One precision and multiplier: the runs of all seeds."""

    precision: str
    multiplier: float
    lines: Sequence[ledger.Line]

    @property
    def name(self) -> str:
        """Precision and multiplier."""
        return f"{named(self.precision)} × {self.multiplier:g}"

    def mean(self, field: str) -> float:
        """The mean of a figure over the seeds."""
        return fmean(line[field] for line in self.lines)

    @property
    def accuracy(self) -> Estimate:
        """Accuracy in percent."""
        found = Estimate.of(100 * line["accuracy"] for line in self.lines)
        assert found is not None
        return found

    @property
    def gap(self) -> float:
        """Loss on test pictures minus loss on training pictures."""
        return self.mean("test_loss") - self.mean("train_loss")


class Study(NamedTuple):
    """All runs of one schedule."""

    blocks: int
    epochs: int
    subset: int | None
    networks: Sequence[Network]

    @property
    def title(self) -> str:
        """Depth and schedule."""
        pictures = "all" if self.subset is None else f"{self.subset:,}"
        return f"ResNet-{6 * self.blocks + 2}, {self.epochs} epochs of {pictures} pictures"

    @property
    def unit(self) -> Network | None:
        """The bfloat16 network of multiplier 1, whose costs are 1."""
        return next((n for n in self.networks if (n.precision, n.multiplier) == ("bfloat16", 1)), None)

    def points(self, cost: str) -> dict[str, list[Point]]:
        """Cost and accuracy by precision, in the order of `PRECISIONS`, by rising multiplier."""
        unit = 1.0 if self.unit is None else self.unit.mean(cost)
        found: dict[str, list[Point]] = {}
        for network in self.networks:
            point = Point(network.name, network.mean(cost) / unit, network.accuracy.mean)
            found.setdefault(network.precision, []).append(point)
        return found


def gather(path: Path) -> list[Study]:
    """The runs of a JSON-lines file by schedule; of runs with the same settings the newest one counts.

    Raises:
        ValueError: the file is damaged.
    """
    studies: dict[tuple[int, int, int], dict[tuple[str, float], list[ledger.Line]]] = {}
    for line in ledger.newest(path):
        settings = line["settings"]
        schedule = settings["blocks"], settings["epochs"], settings["subset"] or 0
        networks = studies.setdefault(schedule, {})
        networks.setdefault((settings["method"], settings["multiplier"]), []).append(line)
    order = list(PRECISIONS)
    return [
        Study(blocks, epochs, subset or None, [
            Network(*key, networks[key]) for key in sorted(networks, key=lambda key: (order.index(key[0]), key[1]))
        ])
        for (blocks, epochs, subset), networks in sorted(studies.items())
    ]  # fmt: skip
