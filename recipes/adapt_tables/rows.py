"""The rows of the paper's tables, and a few of ours: a network, its data set, and the methods that train it."""

from dataclasses import dataclass

METHODS = ("float32", "adapt", "compact", "muppet")
ABLATIONS = (
    "adapt-algorithm4",
    "adapt-unnormalized",
    "adapt-unpenalized",
    "adapt-nearest",
    "adapt-tolerance-0",
    "adapt-tolerance-0.1",
    "adapt-tolerance-1",
)
FIXED = ("fixed8", "fixed16")


@dataclass(frozen=True)
class Row:
    """A network, its data set, and the methods that are run unless others are named."""

    data_set: str
    model: str
    methods: tuple[str, ...] = METHODS


_ROWS = (
    Row("cifar10", "alexnet"),
    Row("cifar10", "resnet20"),
    Row("cifar100", "alexnet"),
    Row("cifar100", "resnet20"),
    Row("cifar10", "lenet5", (*METHODS, *FIXED, *ABLATIONS)),
    Row("mnist", "lenet5"),
    Row("fashion-mnist", "lenet5"),
)
ROWS = {f"{row.data_set}-{row.model}": row for row in _ROWS}
