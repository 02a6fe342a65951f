"""The three phases of training (Schaefer et al. 3.1): lengths, learning rates and penalty weights."""

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, get_args

from adapt.arguments import check_whole

SETTLING = 0.75
"""Last share of the learning phase, before which the widths are cut to the budgets; steps keep learning. A ResNet-20 at
3 bits of weights and activations gained 1.7 points by steps that learned for another 68 % of the training."""

Name = Literal["pretraining", "learning", "finetuning"]

_NAMES: tuple[Name, ...] = get_args(Name)


@dataclass(frozen=True)
class Phases:
    """How many optimizer steps each phase takes. After the last phase the formats stay as they are.

    Args:
        pretraining: steps with the same word length for all, ⌊average of the budget⌋ + 2 bits, and learned steps d.
        learning: steps in which every word length is learned under the budgets' penalty. In the last three
            quarters the widths stay within the budgets, and only the steps d are learned.
        finetuning: steps with frozen formats.

    Raises:
        TypeError, ValueError: a number is not whole or below 0, or all are 0.
    """

    pretraining: int
    learning: int
    finetuning: int

    def __post_init__(self) -> None:
        for name in _NAMES:
            check_whole(name, getattr(self, name), 0, "optimizer steps")
        if not self.total:
            raise ValueError("phases must have at least one step")

    @property
    def total(self) -> int:
        """Steps of all phases."""
        return self.pretraining + self.learning + self.finetuning

    @property
    def learned(self) -> int:
        """Steps of the learning phase in which widths are learned."""
        return self.learning - math.floor(SETTLING * self.learning)

    @property
    def ends(self) -> dict[Name, int]:
        """The number of steps done at the end of each phase that has any."""
        ends = accumulate((self.pretraining, self.learning, self.finetuning))
        return {name: end for name, end in zip(_NAMES, ends, strict=True) if getattr(self, name)}

    @property
    def settling(self) -> int:
        """The number of steps done when the widths are cut to the budgets."""
        return self.pretraining + self.learned

    def at(self, step: int) -> tuple[Name, int, int]:
        """Return the phase of the step with this number (from 0), the number within the phase, and the phase's length.

        A step after the end counts as the last one of fine-tuning.
        """
        if step < self.pretraining:
            return "pretraining", step, self.pretraining
        step -= self.pretraining
        if step < self.learning:
            return "learning", step, self.learning
        return "finetuning", min(step - self.learning, max(self.finetuning - 1, 0)), max(self.finetuning, 1)


def rate(step: int, steps: int, warmup: float) -> float:
    """Return the share of the peak rate: a linear rise over the first `warmup`, then half a cosine to zero.

    Args:
        step: number of the step, from 0.
        steps: how many there are.
        warmup: share of the steps in which the rate rises, 0 to 1.
    """
    rising = math.ceil(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(steps - rising, 1)))


def pressure(step: int, steps: int) -> float:
    """Return the share of β, which rises linearly over the first half of learning widths (Schaefer et al. 3.1).

    Args:
        step: number of the step within the phase, from 0.
        steps: the steps in which widths are learned.
    """
    return min((step + 1) / max(steps / 2, 1), 1.0)
