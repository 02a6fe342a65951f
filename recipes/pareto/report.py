"""What the runs show: accuracy against each cost, the generalisation gap, and which points another one beats."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from recipes.common import ledger
from recipes.common.comparison import NOTHING, Estimate
from recipes.common.dominance import Point, best_beater, count_beaten, front
from recipes.common.markdown import paragraph, table
from recipes.pareto.runs import GAP_PICTURES, LEDGER, PRECISIONS, named

DOCUMENT, FIGURE = "pareto.md", "figures/pareto.png"
COSTS = {"linear": "linear cost", "quadratic": "quadratic cost", "memory": "weight memory"}
"""The costs that are compared, as lines and as texts name them."""

NOTES = (
    "Accuracy on the 10,000 test pictures of ResNets trained from scratch by AQT, for far fewer epochs than in the "
    "paper. Costs are modelled (`adapt.perfmodel`), relative to the bfloat16 network of multiplier 1: linear and "
    "quadratic cost of all multiplications, and bits of all weights. One network beats another if it costs no more and "
    "is at least as accurate, and better in one of the two. The generalisation gap is the loss on the test pictures "
    f"minus that on the first {GAP_PICTURES:,} training pictures, both without crops and flips."
)


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
    newest = {ledger.digest(line["settings"]): line for line in ledger.read(path)}
    studies: dict[tuple[int, int, int], dict[tuple[str, float], list[ledger.Line]]] = {}
    for line in newest.values():
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


def write(folder: Path) -> str:
    """Write `pareto.md` and the figure beside the results, and return the document.

    Raises:
        ValueError: there are no results, or their file is damaged.
    """
    from recipes.pareto.figure import draw

    studies = gather(folder / LEDGER)
    if not studies:
        raise ValueError(f"{folder} holds no results yet: train first")
    (folder / FIGURE).parent.mkdir(parents=True, exist_ok=True)
    draw(studies[-1]).savefig(folder / FIGURE)
    text = document(studies)
    ledger.write_text(text, folder / DOCUMENT)
    return text


def summary(studies: Sequence[Study]) -> str:
    """For a page: of the last schedule, accuracy by multiplier and precision, and how many networks are beaten."""
    study = studies[-1]
    precisions = list(dict.fromkeys(network.precision for network in study.networks))
    found = {(network.multiplier, network.precision): network for network in study.networks}
    rows = [
        [
            f"{multiplier:g}",
            *(found[key].accuracy.text() if (key := (multiplier, name)) in found else NOTHING for name in precisions),
        ]
        for multiplier in sorted({network.multiplier for network in study.networks})
    ]
    accuracies = table(["filters ×", *(f"{named(name)}, %" for name in precisions)], rows)
    return "\n\n".join([f"{study.title}:", accuracies, counts(study)])


def document(studies: Sequence[Study]) -> str:
    """The report in Markdown."""
    parts = ["# What precision buys", paragraph(NOTES), f"![Accuracy against cost]({FIGURE})"]
    for study in studies:
        parts += [f"## {study.title}", figures(study), "### Who beats whom", dominance(study)]
    return "\n\n".join(parts) + "\n"


def figures(study: Study) -> str:
    """A row for every network: accuracy, costs, losses and gap."""
    unit = study.unit
    head = ["network", "accuracy, %", *COSTS.values(), "training loss", "test loss", "gap", "seeds"]
    rows = [
        [
            network.name,
            network.accuracy.text(),
            *(f"{network.mean(cost) / (1 if unit is None else unit.mean(cost)):.3f}" for cost in COSTS),
            *(f"{network.mean(name):.3f}" for name in ("train_loss", "test_loss")),
            f"{network.gap:.3f}".replace("-", "−"),
            str(len(network.lines)),
        ]
        for network in study.networks
    ]
    return table(head, rows)


def dominance(study: Study) -> str:
    """How many points of each curve the others beat, what nothing beats, and the best rival of every network."""
    curves = {cost: study.points(cost) for cost in COSTS}
    fronts = [f"Beaten by none in {title}: {_front(curves[cost])}." for cost, title in COSTS.items()]
    every = {cost: [point for curve in curves[cost].values() for point in curve] for cost in COSTS}
    rivals = [
        [network.name, *(_rival(every[cost][i], every[cost]) for cost in COSTS)]
        for i, network in enumerate(study.networks)
    ]
    beaten = table(["network", *(f"best rival in {title}" for title in COSTS.values())], rivals)
    return "\n\n".join([counts(study), paragraph(" ".join(fronts)), beaten])


def counts(study: Study) -> str:
    """For each cost how many networks of each precision every other precision beats."""
    curves = {cost: study.points(cost) for cost in COSTS}
    names = list(curves["memory"])
    rows = [
        [title, named(name), *(_count(curves[cost], name, rival) for rival in names)]
        for cost, title in COSTS.items()
        for name in names
    ]
    return table(["in accuracy and", "networks that are beaten", *(f"by {named(name)}" for name in names)], rows)


def _count(curves: Mapping[str, Sequence[Point]], name: str, rival: str) -> str:
    if name == rival:
        return NOTHING
    return f"{count_beaten(curves[name], curves[rival])} of {len(curves[name])}"


def _front(curves: Mapping[str, Sequence[Point]]) -> str:
    best = front([point for curve in curves.values() for point in curve])
    return ", ".join(point.name for point in best)


def _rival(point: Point, points: Sequence[Point]) -> str:
    rival = best_beater(point, points)
    if rival is None:
        return NOTHING
    return f"{rival.name}: {rival.score - point.score:+.2f} at {rival.cost / point.cost:.2f} of the cost"
