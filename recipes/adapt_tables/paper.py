"""The figures that the paper prints (Kummer et al. 2021, tables 1 to 6), keyed by data set and network.

The captions of tables 1 and 2 are interchanged in the print; the column heads name the right data sets. All figures are
for ResNet-20 and AlexNet, one run each.
"""

from dataclasses import dataclass

Key = tuple[str, str]


@dataclass(frozen=True)
class Accuracy:
    """Top-1 accuracies in percent, and the schedules as epochs and batch size."""

    float32: float
    quantized: float
    schedule: str


@dataclass(frozen=True)
class Training:
    """Tables 3 and 4: memory ratio and the speedups over float32, at iso-accuracy, and over MuPPET's float32.

    None where the print has a question mark.
    """

    memory: float
    speedup: float | None
    iso_accuracy: float | None
    over_muppet: float


@dataclass(frozen=True)
class Inference:
    """Tables 5 and 6: shares of zeros at the end and on average, size ratio, speedup."""

    final_sparsity: float
    sparsity: float
    size: float
    speedup: float


ADAPT_SCHEDULE = "100 epochs, batch 512"
ADAPT_ACCURACY: dict[Key, Accuracy] = {
    ("cifar100", "alexnet"): Accuracy(41.3, 42.4, ADAPT_SCHEDULE),
    ("cifar100", "resnet20"): Accuracy(64.3, 65.2, ADAPT_SCHEDULE),
    ("cifar10", "alexnet"): Accuracy(73.1, 74.5, ADAPT_SCHEDULE),
    ("cifar10", "resnet20"): Accuracy(89.5, 90.0, ADAPT_SCHEDULE),
}
MUPPET_ACCURACY: dict[Key, Accuracy] = {
    ("cifar100", "alexnet"): Accuracy(39.2, 38.2, "150 epochs, batch 128"),
    ("cifar100", "resnet20"): Accuracy(64.6, 65.8, "150 epochs, batch 128"),
    ("cifar10", "alexnet"): Accuracy(75.5, 74.5, "150 and 99 epochs, batch 128"),
    ("cifar10", "resnet20"): Accuracy(90.1, 90.9, "150 and 114 epochs, batch 128"),
}
ADAPT_TRAINING: dict[Key, Training] = {
    ("cifar10", "alexnet"): Training(1.47, 1.42, 2.37, 6.42),
    ("cifar10", "resnet20"): Training(1.63, 1.20, 1.49, 4.01),
    ("cifar100", "alexnet"): Training(1.41, 1.32, 1.57, 5.23),
    ("cifar100", "resnet20"): Training(1.66, 1.13, 1.62, 3.36),
}
MUPPET_TRAINING: dict[Key, Training] = {
    ("cifar10", "alexnet"): Training(1.66, None, None, 1.2),
    ("cifar10", "resnet20"): Training(1.61, None, None, 1.25),
}
ADAPT_INFERENCE: dict[Key, Inference] = {
    ("cifar10", "alexnet"): Inference(0.26, 0.27, 0.54, 3.56),
    ("cifar10", "resnet20"): Inference(0.07, 0.04, 0.60, 1.63),
    ("cifar100", "alexnet"): Inference(0.44, 0.35, 0.36, 2.60),
    ("cifar100", "resnet20"): Inference(0.07, 0.03, 0.57, 1.52),
}
