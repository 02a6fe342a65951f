"""What the runs show: the score at each precision within a budget, and which precision wins."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from recipes.common import ledger
from recipes.common.comparison import Estimate
from recipes.common.markdown import paragraph, table
from recipes.tradeoff.runs import FLOAT
from recipes.tradeoff.tasks import Task, find

DOCUMENT, FIGURES = "tradeoff.md", "figures"
NOTES = (
    "For each width of parameters b_p the network is scaled until parameters·b_p + largest activation·b_a fills the "
    "budget, trained from scratch by LSQ with activations at b_a = b_p + k bits, and tested. 32 bits are float32. α is "
    "the factor of the number of parameters, as far as whole filters and layers allow. Memory is modelled; the "
    "schedule is far shorter than the paper's."
)


class Variant(NamedTuple):
    """One scaling and pair of widths: the runs of all seeds."""

    scaling: str
    bits: int
    activation_bits: int
    lines: Sequence[ledger.Line]

    @property
    def name(self) -> str:
        """The curve that the variant lies on: scaling and k."""
        return f"{self.scaling}, {'float32 activations' if self.extra is None else f'k = {self.extra}'}"

    @property
    def extra(self) -> int | None:
        """k, the bits of activations above those of parameters; None where activations are float32."""
        return None if self.activation_bits == FLOAT else self.activation_bits - self.bits

    def score(self, task: Task) -> Estimate:
        """What counts, in percent if it is an accuracy."""
        found = Estimate.of((100 if task.score == "accuracy" else 1) * line[task.score] for line in self.lines)
        assert found is not None
        return found


class Study(NamedTuple):
    """All variants of one task and budget under one schedule."""

    task: Task
    budget: float
    epochs: int
    variants: Sequence[Variant]

    @property
    def title(self) -> str:
        """Task, budget and schedule."""
        return f"{self.task.name.capitalize()} within {self.budget:g} kB, {self.epochs} epochs"

    @property
    def figure(self) -> str:
        """The figure's path below the results."""
        return f"{FIGURES}/tradeoff_{self.task.name}_{self.budget:g}.png"

    @property
    def best(self) -> Variant:
        """The variant with the best mean score."""
        sign = 1 if self.task.larger_is_better else -1
        return max(self.variants, key=lambda variant: sign * variant.score(self.task).mean)


def gather(path: Path) -> list[Study]:
    """The runs of a JSON-lines file by task, budget and schedule; of runs with the same settings the newest one counts.

    Raises:
        ValueError: the file is damaged, or of a task that cannot be found.
    """
    newest = {ledger.digest(line["settings"]): line for line in ledger.read(path)}
    studies: dict[tuple[str, float, int, int], dict[tuple[str, int, int], list[ledger.Line]]] = {}
    for line in newest.values():
        settings = line["settings"]
        schedule = settings["task"], settings["budget"], settings["epochs"], settings["subset"] or 0
        variant = settings["scaling"], settings["bits"], settings["activation_bits"]
        studies.setdefault(schedule, {}).setdefault(variant, []).append(line)
    return [
        Study(find(name), budget, epochs, [Variant(*key, lines) for key, lines in sorted(variants.items())])
        for (name, budget, epochs, _), variants in sorted(studies.items())
    ]


def write(path: Path) -> str:
    """Write `tradeoff.md` and the figures beside the lines, and return the document.

    Raises:
        ValueError: there are no results, or their file is damaged.
    """
    from recipes.tradeoff.figure import draw

    studies = gather(path)
    if not studies:
        raise ValueError(f"{path} holds no results yet: train first")
    (path.parent / FIGURES).mkdir(parents=True, exist_ok=True)
    for study in studies:
        draw(study).savefig(path.parent / study.figure)
    text = document(studies)
    ledger.write_text(text, path.parent / DOCUMENT)
    return text


def summary(studies: Sequence[Study]) -> str:
    """For a page: who wins in each study, and its figures."""
    parts = [part for study in studies for part in (f"{study.title}. {verdict(study)}", figures(study))]
    return "\n\n".join(parts)


def document(studies: Sequence[Study]) -> str:
    """The report in Markdown."""
    parts = ["# Fewer parameters or fewer bits", paragraph(NOTES)]
    for study in studies:
        parts += [f"## {study.title}", verdict(study), f"![Score against bits]({study.figure})", figures(study)]
    return "\n\n".join(parts) + "\n"


def verdict(study: Study) -> str:
    """The winner, in a sentence."""
    best, first = study.best, study.best.lines[0]
    score = f"{best.score(study.task).text(_form(study.task))} {_unit(study.task)}"
    return paragraph(
        f"Best is {score} at {best.bits} bits ({best.name}), with {first['parameters']:,} parameters, among "
        f"{len(study.variants)} variants."
    )


def figures(study: Study) -> str:
    """A row for every variant."""
    head = ["scaling", "b_p", "b_a", "α", "parameters", "largest activation", "kB", _unit(study.task), "seeds"]
    rows = [
        [
            variant.scaling,
            str(variant.bits),
            str(variant.activation_bits),
            f"{variant.lines[0]['scale']:.3g}",
            f"{variant.lines[0]['parameters']:,}",
            f"{variant.lines[0]['activation']:,}",
            f"{variant.lines[0]['kilobytes']:.1f}",
            variant.score(study.task).text(_form(study.task)),
            str(len(variant.lines)),
        ]
        for variant in study.variants
    ]  # fmt: skip
    return table(head, rows)


def _unit(task: Task) -> str:
    return "% accuracy" if task.score == "accuracy" else task.unit


def _form(task: Task) -> str:
    return ".2f" if task.score == "accuracy" else ".4f"
