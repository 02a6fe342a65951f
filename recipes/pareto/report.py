"""What the runs show: accuracy against each cost, the generalisation gap, and which points another one beats."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from recipes.common import ledger
from recipes.common.comparison import NOTHING
from recipes.common.dominance import Point, best_beater, count_beaten, front
from recipes.common.markdown import paragraph, table
from recipes.pareto.figure import draw
from recipes.pareto.runs import GAP_PICTURES, LEDGER, named
from recipes.pareto.study import COSTS, Study, gather

DOCUMENT, FIGURE = "pareto.md", "figures/pareto.png"
NOTES = (
    "Accuracy on the 10,000 test pictures of ResNets trained from scratch by AQT, for far fewer epochs than in the "
    "paper. Costs are modelled (`adapt.perfmodel`), relative to the bfloat16 network of multiplier 1: linear and "
    "quadratic cost of all multiplications, and bits of all weights. One network beats another if it costs no more and "
    "is at least as accurate, and better in one of the two. The generalisation gap is the loss on the test pictures "
    f"minus that on the first {GAP_PICTURES:,} training pictures, both without crops and flips."
)


def write(folder: Path) -> str:
    """Write `pareto.md` and the figure beside the results, and return the document.

    Raises:
        ValueError: there are no results, or their file is damaged.
    """
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
