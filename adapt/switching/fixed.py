"""The policy that never switches: one format for every layer, or one for each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from adapt.arguments import check_flags
from adapt.numerics import BlockFloat, FixedPoint, Format, LayerFormat, Precision
from adapt.switching.policy import Observation, State

FOREVER = 2**62


@dataclass(frozen=True)
class Fixed:
    """Trains every layer in one format, or each in its own, from the first step to the last.

    A table maps the layers' parameter names to formats, such as `adapt.formats("best.ckpt")` or
    `adapt.formats("formats.json")`. Entries for anything but layers, such as activations, are ignored.

    Args:
        precision: a `Precision`, or formats by name: `Precision`, `ChannelPrecision`, block floating point, a `Format`
            from `adapt.formats`, or None for a layer in float32.
        normalize_gradients: divide each layer's gradient by its norm before the update.
        quantize_gradients: quantise each layer's gradient stochastically in the layer's format too.

    Raises:
        TypeError: `precision` is neither a Precision nor a table of formats.
    """

    precision: Precision | Mapping[str, Format | LayerFormat]
    normalize_gradients: bool = False
    quantize_gradients: bool = False

    sums_gradients = False
    samples_gradients = False
    keeps_gradients = False
    uses_loss = False

    def __post_init__(self) -> None:
        if isinstance(self.precision, Mapping):
            for name, form in self.precision.items():
                if not isinstance(name, str) or not isinstance(form, Format | FixedPoint | BlockFloat | None):
                    raise TypeError(f"precision must map names to formats, got {form!r:.200} for {name!r:.80}")
            object.__setattr__(self, "precision", dict(self.precision))
        elif not isinstance(self.precision, Precision):
            raise TypeError(
                f"precision must be an adapt.Precision, or formats by the layers' names, got {self.precision!r:.200}"
            )
        check_flags(self, "normalize_gradients", "quantize_gradients")

    def for_layers(self, names: Sequence[str]) -> "Fixed":
        """Return the policy for the layers with these names, in this order.

        Raises:
            ValueError: the table lacks a layer, or has a format for it in which no layer can train.
        """
        table = self.precision
        if not isinstance(table, Mapping):
            return self
        if missing := [name for name in names if name not in table]:
            raise ValueError(
                f"precision has no format for {', '.join(missing[:4])}{', …' if len(missing) > 4 else ''}, but for "
                f"{', '.join(list(table)[:8])}{', …' if len(table) > 8 else ''}: add the missing ones (None for "
                "float32), or leave these layers out with `layers`"
            )
        return replace(self, precision={name: _trainable(name, table[name]) for name in names})

    def start(self, weights: Sequence[Tensor]) -> State:
        """Return the only state that there is."""
        return State(self._formats(len(weights)), np.zeros(len(weights), np.int64))

    def patience(self, state: State) -> int:
        """Return 0 for the first step of a run that began in another format; no other step switches."""
        return FOREVER if state.formats == self._formats(len(state.formats)) else 0

    def advance(self, state: State, observation: Observation) -> State:
        """Return the state with every layer in its format."""
        formats = self._formats(len(state.formats))
        return state if state.formats == formats else replace(state, formats=formats)

    def _formats(self, layers: int) -> tuple[LayerFormat, ...]:
        if isinstance(self.precision, Precision):
            return (self.precision,) * layers
        if len(self.precision) != layers:
            raise ValueError(f"a table of formats needs the names of the layers: take for_layers of {self!r:.200}")
        return tuple(_trainable(*entry) for entry in self.precision.items())

    def record(self, state: State) -> dict[str, NDArray[Any]]:
        """Return no columns: without windows there is nothing to record besides the formats."""
        return {}


def _trainable(name: str, form: Format | LayerFormat) -> LayerFormat:
    """Convert a format to one that a policy may choose for a layer.

    Raises:
        ValueError: the format cannot be trained.
    """
    try:
        return form.precision if isinstance(form, Format) else form
    except ValueError as error:
        raise ValueError(f"{name} cannot be trained in its format: {error}") from error
