"""The points of the comparison by name: how each one's formats come about, and at what rates it is tuned.

| name                  | what it is                                                                                |
|-----------------------|-------------------------------------------------------------------------------------------|
| float32               | the start trained on in float32 for as long as the others are tuned                       |
| lsq2 … lsq8           | LSQ at so many bits for all weights and activations                                       |
| learned2 … learned8   | a width for each output channel and activation, learned within the bytes of LSQ's         |
| compact               | `AdaPT.compact()`, to nearest, activations in words of 8 bits by range                    |
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.optim import Optimizer

import adapt
from adapt import learned
from adapt.adaptive.controller import Controller
from adapt.learned import Budget, Phases
from adapt.learned.options import FixedWidths, LearnedWidths
from adapt.learned.phases import rate
from recipes.common import training
from recipes.common.methods import plain_rates
from recipes.common.models import MODELS

BITS = tuple(range(2, 9))
KINDS = ("float32", "compact", "lsq", "learned")
METHODS = ("float32", "compact", *(f"lsq{bits}" for bits in BITS), *(f"learned{bits}" for bits in BITS))
COMPACT_ACTIVATIONS = 8
"""Bits of the activations under AdaPT's compact preset, which looks at the weights alone."""
WARMUP = 0.04
"""Share of a schedule in which the learning rate rises."""

Plan = adapt.AdaPT | FixedWidths | LearnedWidths


@dataclass(frozen=True)
class Settings:
    """All that decides how a run goes; two runs with equal settings on one device give the same weights.

    Args:
        model: a name in `recipes.common.models.MODELS`.
        method: a name in `METHODS`.
        start_epochs: epochs of float32 training that all methods share.
        epochs: further epochs, in which the method tunes the network.
        lr: peak of the tuning's schedule, found by short runs: a short rise, then a cosine.
        momentum, l2: of SGD with Nesterov's correction; l2 of convolutions and dense layers.
        subset: train on the first so many pictures only.

    Raises:
        ValueError: a name or number that cannot be.
    """

    model: str
    method: str
    lr: float = 0.02
    start_epochs: int = 12
    epochs: int = 6
    batch_size: int = 128
    momentum: float = 0.9
    l2: float = 5e-4
    subset: int | None = None
    seed: int = 0
    data_set: str = "cifar10"

    def __post_init__(self) -> None:
        for name, choices in (("model", tuple(MODELS)), ("method", METHODS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        for name in ("start_epochs", "epochs", "batch_size", "lr"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)!r}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")

    @property
    def start(self) -> training.Settings:
        """The float32 run that this one begins with."""
        return training.Settings(
            self.data_set, self.model, "float32", self.start_epochs, self.batch_size, "onecycle",
            subset=self.subset, seed=self.seed, **plain_rates(self.model),
        )  # fmt: skip


def kind_of(method: str) -> tuple[str, int]:
    """The kind of a method and its bits, 32 where the name has none: "lsq4" is ("lsq", 4)."""
    for kind in ("lsq", "learned"):
        if method.startswith(kind):
            return kind, int(method.removeprefix(kind))
    return method, 32


def chosen(kinds: Iterable[str], bits: Sequence[int]) -> list[str]:
    """The methods of these kinds; those that have a number of bits at each of `bits`, side by side.

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


def plan(settings: Settings, steps: int) -> Plan | None:
    """What decides on the formats in a tuning of so many optimizer steps; None for float32."""
    kind, bits = kind_of(settings.method)
    if kind == "compact":
        return adapt.AdaPT.compact()
    if kind == "lsq":
        return FixedWidths(weight_bits=bits, activation_bits=bits)
    if kind == "learned":
        return LearnedWidths(
            weight_budget=Budget(bits=bits),
            activation_budget=Budget(bits=bits),
            phases=phases(steps),
            # At two bits on average, one format must have one for another to have three.
            floor=1 if bits == 2 else 2,
            # The paper's 20 leaves too few updates in so few steps to come near the budget.
            update_every=5,
            schedule=False,
        )
    return None


def phases(steps: int) -> Phases:
    """A fifth of the steps at one width, two fifths to learn widths, two fifths with formats that stay."""
    first, second = steps // 5, max(2 * steps // 5, 1)
    return Phases(first, second, max(steps - first - second, 0))


def course(steps: int, step: int) -> float:
    """The share of the peak learning rate in the step with this number, from 0, of so many: the same for all methods.

    The paper's cosine begins anew in each phase, which in so few steps costs learned widths a quarter of a point.
    """
    return rate(min(step, steps - 1), steps, WARMUP)


def attach(
    chosen: Plan | None, optimizer: Optimizer, model: nn.Module, calibration: Sequence[Tensor]
) -> Controller | None:
    """Let the plan decide on the formats of weights and activations from now on."""
    if isinstance(chosen, LearnedWidths):
        return learned.attach(optimizer, model, calibration, **vars(chosen))
    if isinstance(chosen, FixedWidths):
        return learned.attach_lsq(optimizer, model, calibration, **vars(chosen))
    if chosen is not None:
        return adapt.attach(optimizer, model, chosen, rounding="nearest", activations=COMPACT_ACTIVATIONS)
    return None
