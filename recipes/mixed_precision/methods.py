"""The methods that are compared, by name: how each decides the formats, and at which rates it tunes.

| name                  | what it is                                                                           |
|-----------------------|--------------------------------------------------------------------------------------|
| float32               | further training in float32, for as long as the others are tuned                     |
| lsq2 … lsq8           | LSQ with this many bits for all weights and activations                              |
| learned2 … learned8   | a width for each output channel and activation, learned within as many bytes as LSQ's |
| compact               | `AdaPT.compact()` rounded to nearest, activations in words of 8 bits by range        |
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

import adapt
from adapt import learned
from adapt.learned import Budget, Phases
from recipes.common.classification import ClassifierSettings
from recipes.common.methods import plain_rates
from recipes.common.settings import check_choice

BITS = tuple(range(2, 9))
KINDS = ("float32", "compact", "lsq", "learned")
METHODS = ("float32", "compact", *(f"lsq{bits}" for bits in BITS), *(f"learned{bits}" for bits in BITS))
COMPACT_ACTIVATIONS = 8
"""Bits of the activations under AdaPT's compact preset, which decides the formats of weights alone."""
WARMUP = 0.04
"""Share of a schedule in which the learning rate rises."""


@dataclass(frozen=True, kw_only=True)
class FixedWidths:
    """Options of `adapt.learned.attach_lsq`, recorded as the run's policy."""

    weight_bits: int
    activation_bits: int


@dataclass(frozen=True, kw_only=True)
class LearnedWidths:
    """Options of `adapt.learned.attach`, recorded as the run's policy where they differ from the defaults there."""

    weight_budget: Budget
    activation_budget: Budget
    phases: Phases
    floor: int = 2
    update_every: int = 20
    schedule: bool = True


@dataclass(frozen=True, kw_only=True)
class TuningSettings(ClassifierSettings):
    """Settings of a tuning, by a short rise of the learning rate and then a cosine.

    Args:
        method: a name in `METHODS` here.
        start_epochs: epochs of float32 training that all methods share.
        epochs: further epochs, in which the method tunes the network.
        lr: peak of the tuning's schedule, found by short runs.
    """

    data_set: str = "cifar10"
    lr: float = 0.02
    start_epochs: int = 12
    epochs: int = 6
    batch_size: int = 128
    l2: float = 5e-4

    def __post_init__(self) -> None:
        check_choice("method", self.method, METHODS)
        super().__post_init__()

    @property
    def rounding(self) -> str:
        """Every method rounds to nearest."""
        return "nearest"

    @property
    def start(self) -> ClassifierSettings:
        """The float32 run that this one begins with."""
        return ClassifierSettings(
            data_set=self.data_set, model=self.model, method="float32", epochs=self.start_epochs,
            batch_size=self.batch_size, subset=self.subset, seed=self.seed, **plain_rates(self.model),
        )  # fmt: skip

    def policy(self, steps_per_epoch: int) -> adapt.AdaPT | FixedWidths | LearnedWidths | None:
        """What decides the formats; None for float32."""
        kind, bits = kind_of(self.method)
        if kind == "compact":
            return adapt.AdaPT.compact()
        if kind == "lsq":
            return FixedWidths(weight_bits=bits, activation_bits=bits)
        if kind == "learned":
            return LearnedWidths(
                weight_budget=Budget(bits=bits),
                activation_budget=Budget(bits=bits),
                phases=phases(self.epochs * steps_per_epoch),
                # At two bits on average, one format must have one for another to have three.
                floor=1 if bits == 2 else 2,
                # The paper's 20 leaves too few updates in so few steps to come near the budget.
                update_every=5,
                schedule=False,
            )
        return None

    def recorded(self) -> dict[str, Any]:
        """The settings as checkpoints and ledgers store them, without those that a tuning does not use."""
        unused = ("schedule", "l1", "buffer_bits")
        return {name: value for name, value in super().recorded().items() if name not in unused}


def kind_of(method: str) -> tuple[str, int]:
    """The kind of a method and its bits, 32 if the name has none: "lsq4" is ("lsq", 4)."""
    for kind in ("lsq", "learned"):
        if method.startswith(kind):
            return kind, int(method.removeprefix(kind))
    return method, 32


def chosen(kinds: Iterable[str], bits: Sequence[int]) -> list[str]:
    """The methods of these kinds; LSQ and learned widths at each of `bits`, side by side.

    Raises:
        ValueError: there is no such kind or number of bits.
    """
    kinds = tuple(kinds)
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"methods must be of {', '.join(KINDS)}, got {kind!r}")
    for number in bits:
        if number not in BITS:
            raise ValueError(f"bits must lie between {BITS[0]} and {BITS[-1]}, got {number}")
    paired = [f"{kind}{number}" for number in bits for kind in kinds if kind in ("lsq", "learned")]
    return [kind for kind in kinds if kind == "float32"] + paired + [kind for kind in kinds if kind == "compact"]


def phases(steps: int) -> Phases:
    """A fifth of the steps at one width, two fifths to learn widths and then steps, two fifths with frozen formats."""
    first, second = steps // 5, max(2 * steps // 5, 1)
    return Phases(first, second, max(steps - first - second, 0))


def rate(steps: int, step: int) -> float:
    """The share of the peak learning rate in step number `step` of `steps`: a linear rise, then half a cosine to zero.

    It is the same for all methods. The paper's cosine begins anew in each phase, which in so few steps costs learned
    widths a quarter of a point.
    """
    step, rising = min(step, steps - 1), math.ceil(WARMUP * steps)
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(steps - rising, 1)))


def attach(
    policy: adapt.AdaPT | FixedWidths | LearnedWidths | None,
    optimizer: Optimizer,
    model: nn.Module,
    calibration: Sequence[Tensor],
) -> adapt.Controller | learned.Learner | None:
    """Let the policy decide the formats of weights and activations from now on."""
    if isinstance(policy, LearnedWidths):
        return learned.attach(optimizer, model, calibration, **vars(policy))
    if isinstance(policy, FixedWidths):
        return learned.attach_lsq(optimizer, model, calibration, **vars(policy))
    if policy is not None:
        return adapt.attach(optimizer, model, policy, rounding="nearest", activations=COMPACT_ACTIVATIONS)
    return None
