"""The options of `adapt.attach` and of all that forwards to it: types, defaults and checks."""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any, Literal, TypedDict, TypeVar, get_args, get_type_hints

from adapt.activations import MODES
from adapt.arguments import check_between, check_flags, check_option, is_whole
from adapt.execution import EXECUTIONS
from adapt.layers import choice
from adapt.layers.layer_bits import LayerBits, checked
from adapt.numerics import LONGEST_WORD, SHORTEST_WORD

Rounding = Literal["stochastic", "nearest"]
ActivationMode = Literal["layer", "range"]
ShortType = Literal["bfloat16", "float16"]

Face = TypeVar("Face", bound=Callable[..., Any])


class CommonOptions(TypedDict, total=False):
    """Keyword options of `adapt.attach`, `adapt.ASGD` and `adapt.lightning.AdaptivePrecision`.

    `adapt.attach` documents them; `Settings` has the defaults.
    """

    rounding: Rounding
    seed: int
    layers: choice.Choice
    layer_bits: LayerBits | None
    quantize_biases: bool
    l1_by_word_length: bool
    trace_every: int
    activations: ActivationMode | int | None
    quantize_errors: bool
    execution: ShortType | None
    execution_backward: bool


class Options(CommonOptions, total=False):
    """`CommonOptions` and the penalties, which `AdaptivePrecision` also accepts by position."""

    l1: float
    l2: float


@dataclass(frozen=True, kw_only=True)
class Settings:
    """`Options`, complete and checked. Build it from keyword arguments with `of`.

    Raises:
        TypeError, ValueError: an option has a wrong type or value.
    """

    l1: float = 0.0
    l2: float = 0.0
    rounding: Rounding = "stochastic"
    seed: int = 0
    layers: choice.Choice = choice.is_matrix
    layer_bits: LayerBits | None = None
    quantize_biases: bool = False
    l1_by_word_length: bool = False
    trace_every: int = 1
    activations: ActivationMode | int | None = None
    quantize_errors: bool = False
    execution: ShortType | None = None
    execution_backward: bool = True

    @classmethod
    def of(cls, **options: Any) -> "Settings":
        """Return the settings for these keyword arguments.

        Raises:
            TypeError, ValueError: an option is unknown, or has a wrong type or value.
        """
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                near = get_close_matches(name, [*known, "policy"], n=1)
                hint = f"did you mean {near[0]}?" if near else "help(adapt.attach) names them all"
                raise TypeError(f"there is no option {name}: {hint}")
        return cls(**options)

    def __post_init__(self) -> None:
        for name in ("l1", "l2"):
            check_between(name, getattr(self, name), 0, math.inf)
        choice.check_choice(self.layers)
        if self.layer_bits is not None:
            bounds = checked(self.layer_bits, shortest=SHORTEST_WORD, longest=LONGEST_WORD)
            object.__setattr__(self, "layer_bits", bounds)
        check_option("rounding", self.rounding, ("stochastic", "nearest"))
        check_flags(self, "quantize_biases", "l1_by_word_length", "quantize_errors", "execution_backward")
        if not is_whole(self.seed):
            raise TypeError(f"seed must be an integer, got {self.seed!r}")
        if not is_whole(self.trace_every) or self.trace_every < 1:
            raise ValueError(f"trace_every must be a whole number of steps ≥ 1, got {self.trace_every!r}")
        words = range(SHORTEST_WORD, LONGEST_WORD + 1)
        mode = self.activations
        if not (mode is None or mode in MODES or (is_whole(mode) and mode in words)):
            raise ValueError(
                f'activations must be None, "layer", "range" or a word length of {SHORTEST_WORD} to {LONGEST_WORD} '
                f"bits, got {self.activations!r}"
            )
        if self.quantize_errors and self.activations is None:
            raise ValueError('quantize_errors=True needs activations="layer", "range" or a word length')
        check_option("execution", self.execution, (None, *EXECUTIONS))


def shows_options(face: Face) -> Face:
    """Make `help` and `inspect.signature` list a function's options one by one instead of `**options`."""
    signature = inspect.signature(face)
    *own, options = signature.parameters.values()
    defaults = {field.name: field.default for field in fields(Settings)}
    named = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=defaults[name], annotation=hint)
        for name, hint in get_type_hints(get_args(options.annotation)[0]).items()
    ]
    face.__signature__ = signature.replace(parameters=[*own, *named])  # type: ignore[attr-defined]
    return face
