"""The report: a Markdown file with the figures beside it, and the table of the results page."""

from collections.abc import Sequence
from pathlib import Path

from recipes.adapt_tables import paper, tables
from recipes.adapt_tables.experiments import Experiment, gather
from recipes.adapt_tables.rows import ROWS, Row
from recipes.common import ledger, markdown
from recipes.common.comparison import NOT_RUN, NOTHING, seeds

DOCUMENT = "adapt_tables.md"
NOTE = "note.md"
"""Remarks on the runs in a folder of results; the report contains them as they are."""
NOTES = """\
Ours are means over seeds, ± the standard error of the mean. Δ is the accuracy less that of float32 with the same seed,
in points, ± the standard error of that difference. The performance model compares with float32 training of the same
steps and batches and reads every step of the trace. MEM and SZ count layers by their elements; "layers alike" as
printed, where a small layer counts like a large one. SU¹ counts backward as one product per layer, as the paper does,
"physical" as the two that it takes; both count the overhead of switching once per step. SU² counts our cost up to the
first epoch that is as accurate as float32's last one. SU³ compares with MuPPET's float32 training, another schedule,
and is the paper's alone. All methods quantise the weights alone. The paper's figures are of single runs; the captions
of its tables 1 and 2 are interchanged."""

TARGETS = {
    ("cifar10", "resnet20"): ["≤ 0.17", "≥ 1.65", "≥ 5.5", "≤ 1.18"],
    ("cifar10", "alexnet"): ["≤ 0.10", "≥ 1.7", "≥ 9", "≤ 1.13"],
}
"""Targets for compact at an accuracy not below float32's: size, training and inference speedup, memory."""


def summary(experiments: Sequence[Experiment]) -> str:
    """The table of the results page, and below it the schedules and the rows that were not run."""
    shown = {"float32": "float32", **tables.METHODS}
    rows, schedules = [], []
    for experiment in experiments:
        network = tables.NETWORKS[experiment.key[1]]
        if experiment.key[0] != "cifar10":
            network += f", {tables.DATA_SETS[experiment.key[0]]}"
        if experiment.key in paper.ADAPT_ACCURACY:
            rows.append([f"{network}, AdaPT in the paper", *_printed(experiment.key)])
        for method, name in shown.items():
            if method in experiment.methods:
                rows.append([f"{network}, {name}", *_cells(experiment, method)])
            else:
                rows.append([f"{network}, {name}", NOT_RUN, *[""] * 6])
            if method == "compact" and experiment.key in TARGETS:
                rows.append([f"{network}, target of compact", "", "≥ 0", "", *TARGETS[experiment.key]])
        counted = seeds(runs for method, runs in experiment.methods.items() if method in shown)
        schedules.append(f"{network} {experiment.schedule}, {counted}")
    head = [
        "", "accuracy, %", "Δ to float32, points", "bits", "modelled size", "modelled training speedup",
        "modelled inference speedup", "modelled memory",
    ]  # fmt: skip
    missing = [f"{tables.NETWORKS[row.model]} on {tables.DATA_SETS[row.data_set]}" for row in _missing(experiments)]
    below = f"Schedules: {'; '.join(schedules) or 'none yet'}. Not run: {', '.join(missing) or 'nothing'}."
    return f"{markdown.table(head, rows)}\n\n{markdown.paragraph(below)}"


def document(experiments: Sequence[Experiment], figures: Sequence[Path], note: str = "") -> str:
    """The report: the paper's tables with ours beside them, every method and its commands, the figures."""
    parts = ["# AdaPT's tables and figures, ours beside the paper's", *([note.strip()] if note else []), NOTES]
    for numbers, table, data_set in (
        ("Table 1", tables.accuracies, "cifar100"),
        ("Table 2", tables.accuracies, "cifar10"),
        ("Table 3", tables.training, "cifar10"),
        ("Table 4", tables.training, "cifar100"),
        ("Table 5", tables.sparsities, "cifar10"),
        ("Table 5", tables.sparsities, "cifar100"),
        ("Table 6", tables.inference, "cifar10"),
        ("Table 6", tables.inference, "cifar100"),
        *(("Not in the paper", tables.accuracies, name) for name in ("mnist", "fashion-mnist")),
    ):
        parts += [f"## {numbers}, {tables.DATA_SETS[data_set]}", table(experiments, data_set)]
    for experiment in experiments:
        data_set, network = experiment.key
        parts.append(f"## {tables.NETWORKS[network]} on {tables.DATA_SETS[data_set]}: {experiment.schedule}")
        parts += [tables.methods(experiment), tables.sources(experiment)]
    parts += [
        f"![Figure {path.stem.removeprefix('figure')} of the paper, ours]({path.parent.name}/{path.name})"
        for path in figures
    ]
    return "\n\n".join(parts) + "\n"


def write(folder: Path) -> str:
    """Write the report and the figures of the results in `folder`, and return the summary.

    Raises:
        ValueError: there are no results, or their file is damaged.
    """
    # Training does not draw, and matplotlib takes a while to import.
    from recipes.adapt_tables.figures import draw

    experiments = gather(folder)
    if not experiments:
        raise ValueError(f"{folder} holds no results yet: run a row first")
    figures = draw(experiments, folder, folder / "figures")
    note = (folder / NOTE).read_text(encoding="utf-8") if (folder / NOTE).exists() else ""
    ledger.write_text(document(experiments, figures, note), folder / DOCUMENT)
    return summary(experiments)


def _cells(experiment: Experiment, method: str) -> list[str]:
    cells = tables.result(experiment, method)
    del cells["bits on average"]
    return list(cells.values())


def _printed(key: paper.Key) -> list[str]:
    accuracy, training, inference = paper.ADAPT_ACCURACY[key], paper.ADAPT_TRAINING[key], paper.ADAPT_INFERENCE[key]
    return [
        f"{accuracy.quantized}", f"{accuracy.quantized - accuracy.float32:+.1f}", NOTHING,
        f"{inference.size:.2f}", f"{training.speedup:.2f}", f"{inference.speedup:.2f}", f"{training.memory:.2f}",
    ]  # fmt: skip


def _missing(experiments: Sequence[Experiment]) -> list[Row]:
    run = {experiment.key for experiment in experiments}
    return [row for row in ROWS.values() if (row.data_set, row.model) not in run]
