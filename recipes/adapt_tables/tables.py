"""The paper's tables with ours beside them, as Markdown. What was not run says so."""

from collections.abc import Callable, Mapping, Sequence

from recipes.adapt_tables import paper
from recipes.adapt_tables.evidence import Group, percent
from recipes.adapt_tables.rows import ROWS
from recipes.common import evidence
from recipes.common.evidence import NOT_RUN, NOTHING, Value, costs, figure, markdown, performance, text

NETWORKS = {"alexnet": "AlexNet", "resnet20": "ResNet-20", "lenet5": "LeNet-5"}
DATA_SETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "mnist": "MNIST", "fashion-mnist": "Fashion-MNIST"}
METHODS = {"adapt": "AdaPT", "compact": "compact", "muppet": "MuPPET"}
"""The methods of the paper's tables, and ours."""


def sparsity(name: str) -> Value:
    """The share of zeros, where the line holds that of the others."""
    return lambda line: 1 - float(line["performance"]["paper"][name])


def accuracies(groups: Sequence[Group], data_set: str) -> str:
    """Tables 1 (CIFAR-100) and 2 (CIFAR-10); for other data sets, of which the paper has no table, ours alone."""

    def ours(group: Group, method: str) -> list[str]:
        return [
            text(figure(group.runs("float32"), percent), ".1f"),
            text(figure(group.runs(method), percent), ".1f"),
            text(group.difference(method), "+.1f"),
            f"{group.schedule}, {evidence.seeds([group.runs(method)])}",
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
            text(figure(group.runs(method), performance("paper", "memory_ratio"))),
            text(figure(group.runs(method), performance("printed", "memory_ratio"))),
            text(figure(group.runs(method), performance("paper", "training_speedup"))),
            text(figure(group.runs(method), performance("physical", "training_speedup"))),
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
        return [text(figure(group.runs(method), sparsity(name))) for name in ("nonzero", "run_nonzero")]

    theirs = {key: [f"{p.final_sparsity:.2f}", f"{p.sparsity:.2f}"] for key, p in paper.ADAPT_INFERENCE.items()}
    return _table(["share of zeros", "final model", "average"], groups, data_set, ours, {"adapt": theirs})


def inference(groups: Sequence[Group], data_set: str) -> str:
    """Table 6."""

    def ours(group: Group, method: str) -> list[str]:
        return [
            text(figure(group.runs(method), performance("paper", "size_ratio"))),
            text(figure(group.runs(method), performance("printed", "size_ratio"))),
            text(figure(group.runs(method), performance("paper", "inference_speedup"))),
        ]

    theirs = {key: [NOTHING, f"{p.size:.2f}", f"{p.speedup:.2f}"] for key, p in paper.ADAPT_INFERENCE.items()}
    return _table(["inference", "SZ", "SZ, layers alike", "SU"], groups, data_set, ours, {"adapt": theirs})


def methods(group: Group) -> str:
    """Every method that was run on one network under one schedule."""
    rows = [[name, *result(group, name).values(), str(len(runs))] for name, runs in group.methods.items()]
    return markdown(["method", *result(group, next(iter(group.methods))), "seeds"], rows)


def result(group: Group, method: str) -> dict[str, str]:
    """What a method reached and what it cost, a cell for each column of `methods`."""
    return {
        "accuracy, %": text(figure(group.runs(method), percent), ".1f"),
        "Δ to float32, points": NOTHING if method == "float32" else text(group.difference(method), "+.1f"),
        **costs(group.runs(method)),
    }


def sources(group: Group) -> str:
    """The accuracy of every run, and where it comes from."""
    return evidence.sources(group.methods, percent, ".2f", "%")


def _iso_accuracy(group: Group, method: str) -> str:
    reached = group.iso_accuracy(method)
    pairs = len(group.runs(method).keys() & group.runs("float32").keys())
    if reached is None:
        return "not reached" if pairs else NOTHING
    return reached.text() if reached.seeds == pairs else f"{reached.text()} ({reached.seeds} of {pairs} seeds)"


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
