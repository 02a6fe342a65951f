"""The finished runs, by network and schedule, and what is read from each."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.common import comparison, ledger
from recipes.common.comparison import Runs
from recipes.mixed_precision.methods import METHODS
from recipes.mixed_precision.runs import LEDGER

NETWORKS = {
    "resnet20": "ResNet-20",
    "mobilenet-v2": "MobileNetV2",
    "mobilenet-v2-quarter": "MobileNetV2 with a quarter of the channels",
}
SIZES = ("weight_kilobytes", "activation_kilobytes")


@dataclass(frozen=True)
class Experiment(comparison.Experiment):
    """All runs of one network under one schedule.

    Attributes:
        methods: the runs by method and seed.
        starts: the runs of the float32 start, by seed.
    """

    starts: Runs

    @property
    def network(self) -> str:
        """The network's name in tables."""
        model: str = self.settings["model"]
        return NETWORKS.get(model, model)

    @property
    def title(self) -> str:
        """Network and schedule."""
        now = self.settings
        pictures = f"{now['subset']:,} pictures of " if now["subset"] else ""
        return (
            f"{self.network} on {pictures}CIFAR-10: {now['start_epochs']} epochs in float32, then {now['epochs']} of "
            f"tuning, batch {now['batch_size']}"
        )


def accuracy(line: ledger.Line) -> float:
    """Accuracy in percent."""
    return 100 * float(line["accuracy"])


def kilobytes(line: ledger.Line) -> float:
    """Size of weights and activations together."""
    return sum(float(line[size]) for size in SIZES)


def gather(folder: Path) -> list[Experiment]:
    """The experiments whose results are in `folder`.

    Raises:
        ValueError: the file of results is damaged.
    """
    starts, tunings = {}, []
    for experiment in map(comparison.Experiment, comparison.gather(folder / LEDGER, METHODS)):
        if "start_epochs" in experiment.settings:
            tunings.append(experiment)
        else:
            starts[_start_key(experiment.settings, "epochs")] = experiment.runs("float32")
    return [
        Experiment(tuning.methods, starts.get(_start_key(tuning.settings, "start_epochs"), {})) for tuning in tunings
    ]


def _start_key(settings: Mapping[str, Any], epochs: str) -> tuple[Any, ...]:
    return tuple(settings[name] for name in ("data_set", "model", "batch_size", "subset", epochs))
