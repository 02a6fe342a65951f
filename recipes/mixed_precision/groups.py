"""The finished runs, network by network and schedule by schedule, and what is read off each."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipes.common import evidence, ledger
from recipes.common.evidence import Runs
from recipes.mixed_precision.points import METHODS
from recipes.mixed_precision.runs import LEDGER

NETWORKS = {
    "resnet20": "ResNet-20",
    "mobilenet-v2": "MobileNetV2",
    "mobilenet-v2-quarter": "MobileNetV2 with a quarter of the channels",
}
SIZES = ("weight_kilobytes", "activation_kilobytes")


class Group:
    """All runs of one network under one schedule.

    Args:
        methods: the runs by method and seed.
        starts: the runs of the float32 start, by seed.
    """

    def __init__(self, methods: Mapping[str, Runs], starts: Runs) -> None:
        self.methods, self.starts = methods, starts
        self.settings = _settings(methods)

    def runs(self, method: str) -> Runs:
        """The runs of a method; none where it was not run."""
        return self.methods.get(method, {})

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


def gather(folder: Path) -> list[Group]:
    """The groups of `folder`'s results.

    Raises:
        ValueError: the file of results is damaged.
    """
    found = evidence.gather(folder / LEDGER, METHODS)
    starts = {_start_key(_settings(runs), "epochs"): runs["float32"] for runs in found if not _is_tuned(runs)}
    return [
        Group(runs, starts.get(_start_key(_settings(runs), "start_epochs"), {})) for runs in found if _is_tuned(runs)
    ]


def _settings(methods: Mapping[str, Runs]) -> dict[str, Any]:
    """The settings of some run; all but its method and seed are those of every run here."""
    settings: dict[str, Any] = next(iter(next(iter(methods.values())).values()))["settings"]
    return settings


def _is_tuned(methods: Mapping[str, Runs]) -> bool:
    return "start_epochs" in _settings(methods)


def _start_key(settings: Mapping[str, Any], epochs: str) -> tuple[Any, ...]:
    return tuple(settings[name] for name in ("data_set", "model", "batch_size", "subset", epochs))
