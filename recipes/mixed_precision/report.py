"""The report: a Markdown file with tables, and the figure of accuracy against size."""

from collections.abc import Sequence
from pathlib import Path

from recipes.common import ledger
from recipes.common.comparison import NOTHING, Estimate, Runs, Value, difference, estimate, ratio, seeds, sources, text
from recipes.common.markdown import paragraph
from recipes.common.markdown import table as markdown
from recipes.mixed_precision.experiments import SIZES, Experiment, accuracy, gather, kilobytes
from recipes.mixed_precision.methods import kind_of

DOCUMENT = "mixed_precision.md"
FIGURE = "figures/mixed_precision.png"
NOTES = """\
Accuracy in percent; means over seeds ± the standard error of the mean. Differences are between runs of the same seed,
which share their float32 start and see the same pictures in the same order, in points ± their standard error. Sizes are
those of weights, biases and the inputs of all layers, first and last included, for one sample, in kB of 8000 bits;
batch normalisation and the steps of the formats are left out alike for all. "Off LSQ's bytes" is by how much learned
widths are larger than LSQ at as many bits, weights and activations; "before" is where learning alone had brought them,
from where they were settled. "Time" is the processor's in the training steps of a run, over that of float32 with the
same seed."""


def processor_seconds(line: ledger.Line) -> float:
    """Processor time of a run's training steps; wall-clock time if they ran on another device."""
    clock = "processor_seconds" if line["provenance"]["device"] == "cpu" else "seconds"
    return sum(float(epoch[clock]) for epoch in line["history"])


def table(experiment: Experiment) -> str:
    """A row for each method, and one for the start."""
    head = [
        "", "accuracy, %", "Δ to float32", "Δ to LSQ at the same bytes", "weights, kB", "activations, kB",
        "total, kB", "bits of weights, activations", "off LSQ's bytes", "before", "time", "seeds",
    ]  # fmt: skip
    rows = [["start", text(estimate(experiment.starts, accuracy)), *[NOTHING] * 9, str(len(experiment.starts))]]
    rows += [[name, *_cells(experiment, name)] for name in experiment.methods]
    return markdown(head, rows)


def summary(experiments: Sequence[Experiment]) -> str:
    """Learned widths beside LSQ of the same bytes, a row for each budget; then a sentence about the other methods."""
    head = ["", "kB", "LSQ, %", "learned, %", "learned − LSQ", "learned − float32"]
    rows = []
    for experiment in experiments:
        for learned in sorted(experiment.methods, key=lambda name: kind_of(name)[1]):
            runs, others = experiment.runs(learned), experiment.runs(same_bytes(learned) or "")
            if runs and others:
                rows.append([
                    f"{experiment.network}, {kind_of(learned)[1]} bits on average", _mean(runs, kilobytes, ".0f"),
                    text(estimate(others, accuracy)), text(estimate(runs, accuracy)),
                    text(difference(runs, others, accuracy), "+.2f"),
                    text(difference(runs, experiment.runs("float32"), accuracy), "+.2f"),
                ])  # fmt: skip
    return "\n\n".join([markdown(head, rows), *map(_around, experiments)])


def write(folder: Path) -> str:
    """Write `mixed_precision.md` and the figure beside the results, and return the summary.

    Raises:
        ValueError: there are no results, or their file is damaged.
    """
    # Training does not draw, and matplotlib takes a while to import.
    from recipes.mixed_precision.figure import draw

    experiments = gather(folder)
    if not experiments:
        raise ValueError(f"{folder} holds no results yet: train first")
    (folder / FIGURE).parent.mkdir(exist_ok=True)
    draw(experiments).savefig(folder / FIGURE)
    parts = ["# Learned bit widths, and LSQ at the same bytes", NOTES, summary(experiments)]
    for experiment in experiments:
        parts += [f"## {experiment.title}", table(experiment), sources(experiment.methods, accuracy, ".2f", "%")]
    document = "\n\n".join([*parts, f"![Accuracy against size]({FIGURE})"]) + "\n"
    ledger.write_text(document, folder / DOCUMENT)
    return summary(experiments)


def same_bytes(method: str) -> str | None:
    """The LSQ method of the same size as learned widths; None for other methods."""
    kind, bits = kind_of(method)
    return f"lsq{bits}" if kind == "learned" else None


def _cells(experiment: Experiment, method: str) -> list[str]:
    runs, float32, partner = experiment.runs(method), experiment.runs("float32"), same_bytes(method)
    others = experiment.runs(partner) if partner is not None else {}
    return [
        text(estimate(runs, accuracy)),
        NOTHING if method == "float32" else text(difference(runs, float32, accuracy), "+.2f"),
        text(difference(runs, others, accuracy), "+.2f"),
        *(_mean(runs, value, ".1f") for value in (*map(_number, SIZES), kilobytes)),
        ", ".join(_mean(runs, _bits(what), ".2f") for what in ("weight", "input")),
        _filled(runs, others),
        _before(runs),
        NOTHING if method == "float32" else text(ratio(runs, float32, processor_seconds)),
        str(len(runs)),
    ]


def _around(experiment: Experiment) -> str:
    """A sentence about the schedule and the methods other than LSQ and learned widths."""
    names = {
        "start": experiment.starts,
        "float32 tuned for as long": experiment.runs("float32"),
        "compact": experiment.runs("compact"),
    }
    told = [f"{name} {text(estimate(runs, accuracy))} %" for name, runs in names.items() if runs]
    sizes = f" in {_mean(experiment.runs('compact'), kilobytes, '.0f')} kB" if experiment.runs("compact") else ""
    return paragraph(
        f"{experiment.title}; {seeds(experiment.methods.values())}. {', '.join(told).capitalize()}{sizes}."
    )


def _filled(runs: Runs, others: Runs) -> str:
    """By how much weights and activations are larger than those of the runs of the same bytes, in percent."""
    return _percent([ratio(runs, others, _number(size)) for size in SIZES])


def _before(runs: Runs) -> str:
    """By how much weights and activations were off their budgets before they were settled, in percent."""
    logs = [{name: value for phase in line["phases"] for name, value in phase.items()} for line in runs.values()]
    names = ("weight_missed_by", "activation_missed_by")
    return _percent([Estimate.of(log[name] + 1 for log in logs if name in log) for name in names])


def _percent(parts: Sequence[Estimate | None]) -> str:
    texts = [f"{100 * (part.mean - 1):+.2f} %".replace("-", "−") for part in parts if part is not None]
    return ", ".join(texts) or NOTHING


def _mean(runs: Runs, value: Value, form: str) -> str:
    found = estimate(runs, value)
    return NOTHING if found is None else f"{found.mean:{form}}"


def _number(name: str) -> Value:
    return lambda line: float(line[name])


def _bits(what: str) -> Value:
    """Average word length of the weights, or of the inputs, by elements."""

    def average(line: ledger.Line) -> float:
        layers = [layer for layer in line["layers"].values() if f"{what}s" in layer]
        elements = sum(layer[f"{what}s"] for layer in layers)
        return float(sum(layer[f"{what}s"] * layer[f"{what}_bits"] for layer in layers) / elements)

    return average
