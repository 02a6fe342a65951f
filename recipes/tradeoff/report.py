"""What the runs show: the score at each precision within a budget, and which precision wins."""

from collections.abc import Sequence
from pathlib import Path

from recipes.common import ledger
from recipes.common.markdown import paragraph, table
from recipes.tradeoff.figure import draw
from recipes.tradeoff.study import FIGURES, Study, gather
from recipes.tradeoff.tasks import Task

DOCUMENT = "tradeoff.md"
NOTES = (
    "For each width of parameters b_p the network is scaled until parameters·b_p + largest activation·b_a fills the "
    "budget, trained from scratch by LSQ with activations at b_a = b_p + k bits, and tested. 32 bits are float32. α is "
    "the factor of the number of parameters, as far as whole filters and layers allow. Memory is modelled; the "
    "schedule is far shorter than the paper's."
)


def write(path: Path) -> str:
    """Write `tradeoff.md` and the figures beside the lines, and return the document.

    Raises:
        ValueError: there are no results, or their file is damaged.
    """
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
