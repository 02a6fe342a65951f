"""The paper's tables with ours beside them, as Markdown; rows of ours without a run say so."""

from collections.abc import Callable, Mapping, Sequence

from recipes.adapt_tables import paper
from recipes.adapt_tables.experiments import Experiment, percent
from recipes.adapt_tables.rows import ROWS
from recipes.common import comparison, markdown
from recipes.common.comparison import NOT_RUN, NOTHING, Value, costs, estimate, performance, text

NETWORKS = {"alexnet": "AlexNet", "resnet20": "ResNet-20", "lenet5": "LeNet-5"}
DATA_SETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "mnist": "MNIST", "fashion-mnist": "Fashion-MNIST"}
METHODS = {"adapt": "AdaPT", "compact": "compact", "muppet": "MuPPET"}
"""The methods of the paper's tables, and ours."""


def sparsity(name: str) -> Value:
    """What reads a share of zeros from a line, which records the share of the others."""
    return lambda line: 1 - float(line["performance"]["paper"][name])


def accuracies(experiments: Sequence[Experiment], data_set: str) -> str:
    """Tables 1 (CIFAR-100) and 2 (CIFAR-10); ours alone for data sets that the paper does not use."""

    def ours(experiment: Experiment, method: str) -> list[str]:
        return [
            text(estimate(experiment.runs("float32"), percent), ".1f"),
            text(estimate(experiment.runs(method), percent), ".1f"),
            text(experiment.difference(method), "+.1f"),
            f"{experiment.schedule}, {comparison.seeds([experiment.runs(method)])}",
        ]

    def cells(p: paper.Accuracy) -> list[str]:
        return [f"{p.float32}", f"{p.quantized}", f"{p.quantized - p.float32:+.1f}", p.schedule]

    theirs = {
        "adapt": {key: cells(p) for key, p in paper.ADAPT_ACCURACY.items()},
        "muppet": {key: cells(p) for key, p in paper.MUPPET_ACCURACY.items()},
    }
    return _table(["top-1 in %", "float32", "quantized", "Δ", "schedule"], experiments, data_set, ours, theirs)


def training(experiments: Sequence[Experiment], data_set: str) -> str:
    """Tables 3 (CIFAR-10) and 4 (CIFAR-100)."""

    def ours(experiment: Experiment, method: str) -> list[str]:
        return [
            text(estimate(experiment.runs(method), performance("paper", "memory_ratio"))),
            text(estimate(experiment.runs(method), performance("printed", "memory_ratio"))),
            text(estimate(experiment.runs(method), performance("paper", "training_speedup"))),
            text(estimate(experiment.runs(method), performance("physical", "training_speedup"))),
            _iso_accuracy(experiment, method),
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
    return _table(head, experiments, data_set, ours, theirs)


def sparsities(experiments: Sequence[Experiment], data_set: str) -> str:
    """Table 5."""

    def ours(experiment: Experiment, method: str) -> list[str]:
        return [text(estimate(experiment.runs(method), sparsity(name))) for name in ("nonzero", "run_nonzero")]

    theirs = {key: [f"{p.final_sparsity:.2f}", f"{p.sparsity:.2f}"] for key, p in paper.ADAPT_INFERENCE.items()}
    return _table(["share of zeros", "final model", "average"], experiments, data_set, ours, {"adapt": theirs})


def inference(experiments: Sequence[Experiment], data_set: str) -> str:
    """Table 6."""

    def ours(experiment: Experiment, method: str) -> list[str]:
        return [
            text(estimate(experiment.runs(method), performance("paper", "size_ratio"))),
            text(estimate(experiment.runs(method), performance("printed", "size_ratio"))),
            text(estimate(experiment.runs(method), performance("paper", "inference_speedup"))),
        ]

    theirs = {key: [NOTHING, f"{p.size:.2f}", f"{p.speedup:.2f}"] for key, p in paper.ADAPT_INFERENCE.items()}
    return _table(["inference", "SZ", "SZ, layers alike", "SU"], experiments, data_set, ours, {"adapt": theirs})


def methods(experiment: Experiment) -> str:
    """Every method that was run on one network under one schedule."""
    rows = [[name, *result(experiment, name).values(), str(len(runs))] for name, runs in experiment.methods.items()]
    return markdown.table(["method", *result(experiment, next(iter(experiment.methods))), "seeds"], rows)


def result(experiment: Experiment, method: str) -> dict[str, str]:
    """A method's accuracy and costs, a cell for each column of `methods`."""
    return {
        "accuracy, %": text(estimate(experiment.runs(method), percent), ".1f"),
        "Δ to float32, points": NOTHING if method == "float32" else text(experiment.difference(method), "+.1f"),
        **costs(experiment.runs(method)),
    }


def sources(experiment: Experiment) -> str:
    """The accuracy of every run, and the commands."""
    return comparison.sources(experiment.methods, percent, ".2f", "%")


def _iso_accuracy(experiment: Experiment, method: str) -> str:
    reached = experiment.iso_accuracy(method)
    pairs = len(experiment.runs(method).keys() & experiment.runs("float32").keys())
    if reached is None:
        return "not reached" if pairs else NOTHING
    return reached.text() if reached.seeds == pairs else f"{reached.text()} ({reached.seeds} of {pairs} seeds)"


def _table(
    head: Sequence[str],
    experiments: Sequence[Experiment],
    data_set: str,
    ours: Callable[[Experiment, str], list[str]],
    theirs: Mapping[str, Mapping[paper.Key, list[str]]],
) -> str:
    """The paper's rows and ours for every network on the data set; a method without a run has a row that says so."""
    rows = []
    for row in (row for row in ROWS.values() if row.data_set == data_set):
        key = (row.data_set, row.model)
        for method, name in METHODS.items():
            title = f"{NETWORKS[row.model]}, {name}"
            if key in theirs.get(method, {}):
                rows.append([f"{title}, the paper", *theirs[method][key]])
            found = [experiment for experiment in experiments if experiment.key == key and method in experiment.methods]
            rows += [[f"{title}, ours", *ours(experiment, method)] for experiment in found]
            if not found:
                rows.append([f"{title}, ours", NOT_RUN, *[""] * (len(head) - 2)])
    return markdown.table([f"{DATA_SETS[data_set]}, {head[0]}", *head[1:]], rows)
