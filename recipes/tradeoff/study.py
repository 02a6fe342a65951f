"""The runs of the study, by task, budget, schedule, scaling and widths."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from recipes.common import ledger
from recipes.common.comparison import Estimate
from recipes.tradeoff.runs import FLOAT
from recipes.tradeoff.tasks import Task, find

FIGURES = "figures"
"""The folder of the figures, below the results."""


class Variant(NamedTuple):
    """One scaling and pair of widths: the runs of all seeds."""

    scaling: str
    bits: int
    activation_bits: int
    lines: Sequence[ledger.Line]

    @property
    def name(self) -> str:
        """The curve that the variant lies on: scaling and k."""
        return f"{self.scaling}, {'float32 activations' if self.extra is None else f'k = {self.extra}'}"

    @property
    def extra(self) -> int | None:
        """k, the bits of activations above those of parameters; None where activations are float32."""
        return None if self.activation_bits == FLOAT else self.activation_bits - self.bits

    def score(self, task: Task) -> Estimate:
        """What counts, in percent if it is an accuracy."""
        found = Estimate.of((100 if task.score == "accuracy" else 1) * line[task.score] for line in self.lines)
        assert found is not None
        return found


class Study(NamedTuple):
    """All variants of one task and budget under one schedule."""

    task: Task
    budget: float
    epochs: int
    variants: Sequence[Variant]

    @property
    def title(self) -> str:
        """Task, budget and schedule."""
        return f"{self.task.name.capitalize()} within {self.budget:g} kB, {self.epochs} epochs"

    @property
    def figure(self) -> str:
        """The figure's path below the results."""
        return f"{FIGURES}/tradeoff_{self.task.name}_{self.budget:g}.png"

    @property
    def best(self) -> Variant:
        """The variant with the best mean score."""
        sign = 1 if self.task.larger_is_better else -1
        return max(self.variants, key=lambda variant: sign * variant.score(self.task).mean)


def gather(path: Path) -> list[Study]:
    """The runs of a JSON-lines file by task, budget and schedule; of runs with the same settings the newest one counts.

    Raises:
        ValueError: the file is damaged, or of a task that cannot be found.
    """
    studies: dict[tuple[str, float, int, int], dict[tuple[str, int, int], list[ledger.Line]]] = {}
    for line in ledger.newest(path):
        settings = line["settings"]
        schedule = settings["task"], settings["budget"], settings["epochs"], settings["subset"] or 0
        variant = settings["scaling"], settings["bits"], settings["activation_bits"]
        studies.setdefault(schedule, {}).setdefault(variant, []).append(line)
    return [
        Study(find(name), budget, epochs, [Variant(*key, lines) for key, lines in sorted(variants.items())])
        for (name, budget, epochs, _), variants in sorted(studies.items())
    ]
