"""The paper's tables with ours beside them, as Markdown. What was not run says so."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from recipes.adapt_tables import paper
from recipes.adapt_tables.evidence import Figure, Group, Value
from recipes.adapt_tables.rows import ROWS

NETWORKS = {"alexnet": "AlexNet", "resnet20": "ResNet-20", "lenet5": "LeNet-5"}
DATA_SETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "mnist": "MNIST", "fashion-mnist": "Fashion-MNIST"}
METHODS = {"adapt": "AdaPT", "compact": "compact", "muppet": "MuPPET"}
"""The methods of the paper's tables, and ours."""
NOTHING = "–"
NOT_RUN = "not run"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def performance(form: str, name: str) -> Value:
    """Reads a figure of the performance model off a line."""
    return lambda line: float(line["performance"][form][name])


def percent(line: Mapping[str, Any]) -> float:
    """Accuracy in percent."""
    return 100 * float(line["accuracy"])


def sparsity(name: str) -> Value:
    """The share of zeros, where the line holds that of the others."""
    return lambda line: 1 - float(line["performance"]["paper"][name])


def text(figure: Figure | None, form: str = ".2f") -> str:
    """A figure as the tables show it."""
    return NOTHING if figure is None else figure.text(form)


def accuracies(groups: Sequence[Group], data_set: str) -> str:
    """Tables 1 (CIFAR-100) and 2 (CIFAR-10); for other data sets, of which the paper has no table, ours alone."""

    def ours(group: Group, method: str) -> list[str]:
        return [
            text(group.figure("float32", percent), ".1f"),
            text(group.figure(method, percent), ".1f"),
            text(group.difference(method), "+.1f"),
            f"{group.schedule}, {seeds(group, method)}",
        ]

    def cells(p: paper.Accuracy) -> list[str]:
        return [f"{p.float32}", f"{p.quantized}", f"{p.quantized - p.float32:+.1f}", p.schedule]

    theirs = {
        "adapt": {key: cells(p) for key, p in paper.ADAPT_ACCURACY.items()},
        "muppet": {key: cells(p) for key, p in paper.MUPPET_ACCURACY.items()},
    }
    return _table(["top-1 in %", "float32", "quantized", "Δ", "schedule"], groups, data_set, ours, theirs)


def training(groups: Sequence[Group], data_set: str) -> str:
    """Tables 3 (CIFAR-10) and 4 (CIFAR-100)."""

    def ours(group: Group, method: str) -> list[str]:
        return [
            text(group.figure(method, performance("paper", "memory_ratio"))),
            text(group.figure(method, performance("printed", "memory_ratio"))),
            text(group.figure(method, performance("paper", "training_speedup"))),
            text(group.figure(method, performance("physical", "training_speedup"))),
            _iso_accuracy(group, method),
            NOTHING,
        ]

    def cells(p: paper.Training) -> list[str]:
        unknown = "?" if p.speedup is None else None
        return [
            NOTHING, f"{p.memory}", unknown or f"{p.speedup:.2f}", NOTHING, unknown or f"{p.iso_accuracy:.2f}",
            f"{p.over_muppet:.2f}",
        ]  # fmt: skip

    theirs = {
        "adapt": {key: cells(p) for key, p in paper.ADAPT_TRAINING.items()},
        "muppet": {key: cells(p) for key, p in paper.MUPPET_TRAINING.items()},
    }
    head = ["training", "MEM", "MEM, layers alike", "SU¹", "SU, physical", "SU²", "SU³"]
    return _table(head, groups, data_set, ours, theirs)


def sparsities(groups: Sequence[Group], data_set: str) -> str:
    """Table 5."""

    def ours(group: Group, method: str) -> list[str]:
        return [text(group.figure(method, sparsity(name))) for name in ("nonzero", "run_nonzero")]

    theirs = {key: [f"{p.final_sparsity:.2f}", f"{p.sparsity:.2f}"] for key, p in paper.ADAPT_INFERENCE.items()}
    return _table(["share of zeros", "final model", "average"], groups, data_set, ours, {"adapt": theirs})


def inference(groups: Sequence[Group], data_set: str) -> str:
    """Table 6."""

    def ours(group: Group, method: str) -> list[str]:
        return [
            text(group.figure(method, performance("paper", "size_ratio"))),
            text(group.figure(method, performance("printed", "size_ratio"))),
            text(group.figure(method, performance("paper", "inference_speedup"))),
        ]

    theirs = {key: [NOTHING, f"{p.size:.2f}", f"{p.speedup:.2f}"] for key, p in paper.ADAPT_INFERENCE.items()}
    return _table(["inference", "SZ", "SZ, layers alike", "SU"], groups, data_set, ours, {"adapt": theirs})


METHOD_HEAD = (
    "accuracy, %", "Δ to float32, points", "bits at the end", "bits on average", "size ratio", "training speedup",
    "inference speedup", "memory ratio",
)  # fmt: skip


def method_figures(group: Group, method: str) -> list[str]:
    """A method's figures in the order of `METHOD_HEAD`, all by elements and as the paper counts backward."""
    names = (
        "mean_word_length", "run_mean_word_length", "size_ratio", "training_speedup", "inference_speedup",
        "memory_ratio",
    )  # fmt: skip
    forms = (".1f", ".1f", ".3f", ".2f", ".2f", ".2f")
    return [
        text(group.figure(method, percent), ".1f"),
        NOTHING if method == "float32" else text(group.difference(method), "+.1f"),
        *(
            text(group.figure(method, performance("paper", name)), form)
            for name, form in zip(names, forms, strict=True)
        ),
    ]


def methods(group: Group) -> str:
    """Every method that was run on one network under one schedule."""
    rows = [[name, *method_figures(group, name), str(len(group.methods[name]))] for name in group.methods]
    return markdown(["method", *METHOD_HEAD, "seeds"], rows)


def sources(group: Group) -> str:
    """Which lines the figures of a group come from."""
    return "\n".join(
        f"- {name}: {', '.join(f'{percent(line):.2f}' for line in runs.values())} % for the seeds "
        f"{' '.join(map(str, runs))}; the first by `{next(iter(runs.values()))['provenance']['command']}`"
        for name, runs in group.methods.items()
    )


def seeds(group: Group, method: str) -> str:
    """How many runs stand behind a method's figures."""
    number = len(group.methods.get(method, {}))
    return f"{number} seed{'' if number == 1 else 's'}"


def _iso_accuracy(group: Group, method: str) -> str:
    figure = group.iso_accuracy(method)
    pairs = len(group.methods.get(method, {}).keys() & group.methods.get("float32", {}).keys())
    if figure is None:
        return "not reached" if pairs else NOTHING
    return figure.text() if figure.seeds == pairs else f"{figure.text()} ({figure.seeds} of {pairs} seeds)"


def _table(
    head: Sequence[str],
    groups: Sequence[Group],
    data_set: str,
    ours: Callable[[Group, str], list[str]],
    theirs: Mapping[str, Mapping[paper.Key, list[str]]],
) -> str:
    """Of every network on the data set the paper's rows and ours; a method without a run has a row that says so."""
    rows = []
    for row in (row for row in ROWS.values() if row.data_set == data_set):
        key = (row.data_set, row.model)
        for method, name in METHODS.items():
            title = f"{NETWORKS[row.model]}, {name}"
            if key in theirs.get(method, {}):
                rows.append([f"{title}, the paper", *theirs[method][key]])
            found = [group for group in groups if group.key == key and method in group.methods]
            rows += [[f"{title}, ours", *ours(group, method)] for group in found]
            if not found:
                rows.append([f"{title}, ours", NOT_RUN, *[""] * (len(head) - 2)])
    return markdown([f"{DATA_SETS[data_set]}, {head[0]}", *head[1:]], rows)
