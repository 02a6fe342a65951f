"""The options of learned formats, checked: learned widths, or LSQ and AQT at given widths."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from adapt.arguments import check_between, check_flags, check_option, check_whole
from adapt.layers import choice
from adapt.layers.layer_bits import LayerBits, checked
from adapt.learned.aqt import LONGEST as LONGEST_OF_AQT
from adapt.learned.aqt import SHORTEST as SHORTEST_OF_AQT
from adapt.learned.aqt import check_width
from adapt.learned.budget import LONGEST, Budget
from adapt.learned.keywords import Scaling
from adapt.learned.lsq import LONGEST as LONGEST_OF_LSQ
from adapt.learned.lsq import check_bits
from adapt.learned.phases import Phases
from adapt.learned.quantizer import check_floor
from adapt.learned.scaling import DELTA, SCALINGS, check_delta


@dataclass(frozen=True, kw_only=True)
class CommonSettings:
    """Which parameters are quantised, and how gradients pass through rounding; see `adapt.learned.scaling`."""

    weight_scaling: Scaling = "ewgs"
    activation_scaling: Scaling = "invtanh"
    delta: float = DELTA
    quantize_biases: bool = True
    layers: choice.Choice = choice.is_matrix
    layer_bits: LayerBits | None = None

    def __post_init__(self) -> None:
        choice.check_choice(self.layers)
        check_flags(self, "quantize_biases")
        check_option("weight_scaling", self.weight_scaling, SCALINGS)
        check_option("activation_scaling", self.activation_scaling, SCALINGS)
        check_delta(self.delta)


@dataclass(frozen=True, kw_only=True)
class LearnedWidths(CommonSettings):
    """Options of widths learned under budgets; documented in `adapt.learned.attach`.

    Raises:
        TypeError, ValueError: an option is invalid.
    """

    weight_budget: Budget
    activation_budget: Budget | None = None
    phases: Phases
    activation_size: Literal["sum", "max"] = "sum"
    floor: Literal[1, 2] = 2
    beta: float | None = None
    update_every: int = 20
    width_rate: float | None = None
    warmup: float = 0.04
    schedule: bool = True

    per_channel = True

    @property
    def words(self) -> range:
        """The word lengths, in bits, that a format may be given."""
        return range(self.floor, LONGEST + 1)

    @property
    def with_activations(self) -> bool:
        """Whether activations are quantised."""
        return self.activation_budget is not None

    @property
    def is_scheduled(self) -> bool:
        """Whether the optimizer's learning rates rise and fall."""
        return self.schedule

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self.phases.total

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("weight_budget", "activation_budget"):
            value = getattr(self, name)
            if not isinstance(value, Budget) and (value is not None or name == "weight_budget"):
                raise TypeError(f"{name} must be an adapt.learned.Budget, such as Budget(bits=4), got {value!r}")
        if not isinstance(self.phases, Phases):
            raise TypeError(f"phases must be an adapt.learned.Phases, got {self.phases!r}")
        if not self.phases.learning:
            raise ValueError("phases must have at least one step of learning: for widths that are given use attach_lsq")
        check_option("activation_size", self.activation_size, ("sum", "max"))
        check_floor(self.floor)
        for name in ("beta", "width_rate"):
            value = getattr(self, name)
            if value is not None:
                check_between(name, value, 0.0, math.inf)
        check_between("warmup", self.warmup, 0.0, 1.0)
        check_whole("update_every", self.update_every, 1)
        check_flags(self, "schedule")
        object.__setattr__(self, "layer_bits", _checked_bits(self))


@dataclass(frozen=True, kw_only=True)
class FixedWidths(CommonSettings):
    """Options of LSQ, with given widths and learned steps; documented in `adapt.learned.attach_lsq`.

    Raises:
        TypeError, ValueError: an option is invalid.
    """

    weight_bits: int
    activation_bits: int | None = None
    per_channel: bool = True
    power_of_two: bool = False
    steps: int | None = None
    momentum: float = 0.9
    warmup: float = 0.04
    weight_scaling: Scaling = "ste"
    activation_scaling: Scaling = "ste"

    weight_budget = None
    activation_budget = None
    activation_size = "sum"
    floor = 2
    words = range(1, LONGEST_OF_LSQ + 1)

    @property
    def with_activations(self) -> bool:
        """Whether activations are quantised."""
        return self.activation_bits is not None

    @property
    def is_scheduled(self) -> bool:
        """Whether the optimizer's learning rates rise and fall."""
        return self.steps is not None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bits("weight_bits", self.weight_bits)
        check_flags(self, "per_channel", "power_of_two")
        if self.activation_bits is not None:
            check_bits("activation_bits", self.activation_bits)
        if self.steps is not None:
            check_whole("steps", self.steps, 1)
        check_between("momentum", self.momentum, 0.0, 1.0)
        check_between("warmup", self.warmup, 0.0, 1.0)
        object.__setattr__(self, "layer_bits", _checked_bits(self))


@dataclass(frozen=True, kw_only=True)
class MaximumRanges:
    """Options of AQT, with given widths and ranges of largest magnitudes; documented in `adapt.learned.attach_aqt`.

    Raises:
        TypeError, ValueError: an option is invalid.
    """

    steps: int
    weight_bits: int = 4
    activation_bits: int | None = 4
    first_bits: int = 8
    last_bits: int = 8
    activations_from: float = 0.2
    decay: float = 0.9
    layers: choice.Choice = choice.is_matrix
    layer_bits: LayerBits | None = None

    quantize_biases = False
    per_channel = True
    weight_budget = None
    activation_budget = None
    activation_size = "sum"
    floor = SHORTEST_OF_AQT
    words = range(SHORTEST_OF_AQT, LONGEST_OF_AQT + 1)
    weight_scaling: ClassVar[Scaling] = "ste"
    activation_scaling: ClassVar[Scaling] = "ste"
    delta = DELTA
    is_scheduled = False
    warmup = 0.0

    @property
    def with_activations(self) -> bool:
        """Whether activations are quantised."""
        return self.activation_bits is not None

    @property
    def calibration(self) -> int:
        """The number of steps, at least one, in which activations are float32 and their ranges are averaged."""
        return max(round(self.activations_from * self.steps), 1)

    def __post_init__(self) -> None:
        choice.check_choice(self.layers)
        check_whole("steps", self.steps, 1)
        for name in ("weight_bits", "activation_bits", "first_bits", "last_bits"):
            value = getattr(self, name)
            if name != "activation_bits" or value is not None:
                check_width(name, value)
        check_between("activations_from", self.activations_from, 0.0, 1.0)
        check_between("decay", self.decay, 0.0, 1.0)
        object.__setattr__(self, "layer_bits", _checked_bits(self))


Plan = LearnedWidths | FixedWidths | MaximumRanges


def _checked_bits(plan: Plan) -> dict[str, tuple[int, int]] | None:
    """Return a plan's bits by pattern as bounds."""
    words = plan.words
    return None if plan.layer_bits is None else checked(plan.layer_bits, shortest=words[0], longest=words[-1])
