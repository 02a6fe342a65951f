"""Everything that the runs say: a Markdown file, with the picture of accuracy against size beside it."""

from collections.abc import Sequence
from pathlib import Path

from adapt import files
from recipes.common import ledger
from recipes.common.evidence import (
    NOTHING,
    Figure,
    Runs,
    Value,
    difference,
    figure,
    markdown,
    paragraph,
    seeds,
    sources,
    text,
)
from recipes.mixed_precision.groups import SIZES, Group, accuracy, gather, kilobytes
from recipes.mixed_precision.points import kind_of

DOCUMENT = "mixed_precision.md"
PICTURE = "figures/mixed_precision.png"
NOTES = """\
Accuracy in percent; means over seeds ± the standard error of the mean. Differences are between runs of the same seed,
which share their float32 start and see the same pictures in the same order, in points ± their standard error. Sizes are
those of weights, biases and the inputs of all layers, first and last included, for one sample, in kB of 8000 bits;
batch normalisation and the steps of the formats are left out alike for all. "Off LSQ's bytes" is by how much learned
widths are larger than LSQ at as many bits, weights and activations; "before" is where learning alone had brought them,
from where they were settled. "Time" is the processor's in the training steps of a run, over that of float32 with the
same seed."""


def processor_seconds(line: ledger.Line) -> float:
    """What the training steps of a run took; the time on the clock where they ran on a device."""
    clock = "processor_seconds" if line["provenance"]["device"] == "cpu" else "seconds"
    return sum(float(epoch[clock]) for epoch in line["history"])


def table(group: Group) -> str:
    """A row for each method, and one for the start."""
    head = [
        "", "accuracy, %", "Δ to float32", "Δ to LSQ at the same bytes", "weights, kB", "activations, kB",
        "total, kB", "bits of weights, activations", "off LSQ's bytes", "before", "time", "seeds",
    ]  # fmt: skip
    rows = [["start", text(figure(group.starts, accuracy)), *[NOTHING] * 9, str(len(group.starts))]]
    rows += [[name, *_cells(group, name)] for name in group.methods]
    return markdown(head, rows)


def summary(groups: Sequence[Group]) -> str:
    """Learned widths beside LSQ of the same bytes, a row for each budget; the rest of a network in a sentence."""
    head = ["", "kB", "LSQ, %", "learned, %", "learned − LSQ", "learned − float32"]
    rows = []
    for group in groups:
        for learned in sorted(group.methods, key=lambda name: kind_of(name)[1]):
            runs, others = group.runs(learned), group.runs(same_bytes(learned) or "")
            if runs and others:
                rows.append([
                    f"{group.network}, {kind_of(learned)[1]} bits on average", _mean(runs, kilobytes, ".0f"),
                    text(figure(others, accuracy)), text(figure(runs, accuracy)),
                    text(difference(runs, others, accuracy), "+.2f"),
                    text(difference(runs, group.runs("float32"), accuracy), "+.2f"),
                ])  # fmt: skip
    return "\n\n".join([markdown(head, rows), *map(_around, groups)])


def write(folder: Path) -> str:
    """Write `mixed_precision.md` and the picture beside the results; answer the summary.

    Raises:
        ValueError: there are no results, or their file is damaged.
    """
    # Training does not draw, and matplotlib takes a while to import.
    from recipes.mixed_precision.picture import draw

    groups = gather(folder)
    if not groups:
        raise ValueError(f"{folder} holds no results yet: train first")
    (folder / PICTURE).parent.mkdir(exist_ok=True)
    draw(groups).savefig(folder / PICTURE)
    parts = ["# Learned bit widths, and LSQ at the same bytes", NOTES, summary(groups)]
    for group in groups:
        parts += [f"## {group.title}", table(group), sources(group.methods, accuracy, ".2f", "%")]
    document = "\n\n".join([*parts, f"![Accuracy against size]({PICTURE})"]) + "\n"
    with files.replacing(folder / DOCUMENT) as file:
        file.write(document.encode())
    return summary(groups)


def same_bytes(method: str) -> str | None:
    """LSQ of the size of learned widths; None for what has no such partner."""
    kind, bits = kind_of(method)
    return f"lsq{bits}" if kind == "learned" else None


def _cells(group: Group, method: str) -> list[str]:
    runs, float32, partner = group.runs(method), group.runs("float32"), same_bytes(method)
    others = group.runs(partner) if partner is not None else {}
    return [
        text(figure(runs, accuracy)),
        NOTHING if method == "float32" else text(difference(runs, float32, accuracy), "+.2f"),
        text(difference(runs, others, accuracy), "+.2f"),
        *(_mean(runs, value, ".1f") for value in (*map(_number, SIZES), kilobytes)),
        ", ".join(_mean(runs, _bits(what), ".2f") for what in ("weight", "input")),
        _filled(runs, others),
        _before(runs),
        NOTHING if method == "float32" else text(_ratio(runs, float32, processor_seconds)),
        str(len(runs)),
    ]


def _around(group: Group) -> str:
    """The schedule, and what was run beside LSQ and learned widths."""
    names = {
        "start": group.starts,
        "float32 tuned for as long": group.runs("float32"),
        "compact": group.runs("compact"),
    }
    told = [f"{name} {text(figure(runs, accuracy))} %" for name, runs in names.items() if runs]
    sizes = f" in {_mean(group.runs('compact'), kilobytes, '.0f')} kB" if group.runs("compact") else ""
    return paragraph(f"{group.title}; {seeds(group.methods.values())}. {', '.join(told).capitalize()}{sizes}.")


def _filled(runs: Runs, others: Runs) -> str:
    """By how much the sizes are off those of the runs of the same bytes, in percent, weights and activations."""
    return _percent([_ratio(runs, others, _number(size)) for size in SIZES])


def _before(runs: Runs) -> str:
    """By how much learning itself missed the budgets, in percent, weights and activations."""
    logs = [{name: value for phase in line["phases"] for name, value in phase.items()} for line in runs.values()]
    names = ("weight_missed_by", "activation_missed_by")
    return _percent([Figure.of(log[name] + 1 for log in logs if name in log) for name in names])


def _percent(parts: Sequence[Figure | None]) -> str:
    texts = [f"{100 * (part.mean - 1):+.2f} %".replace("-", "−") for part in parts if part is not None]
    return ", ".join(texts) or NOTHING


def _ratio(runs: Runs, others: Runs, value: Value) -> Figure | None:
    """`value` of each run over that of the other run with the same seed; None where no seed has both."""
    return Figure.of(value(runs[seed]) / value(others[seed]) for seed in sorted(runs.keys() & others.keys()))


def _mean(runs: Runs, value: Value, form: str) -> str:
    found = figure(runs, value)
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
