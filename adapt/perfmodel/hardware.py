"""Machines that support only some word lengths: which ones, how fast, and where their figures come from."""

import math
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from adapt.arguments import is_number
from adapt.perfmodel.checked_arrays import FLOAT32_BITS, Array, ArrayLike, bounded

MACHINES = Path(__file__).parent / "machines"

Width = float | tuple[float, float]
"""Bits of weights and activations alike, or (bits of weights, bits of activations)."""


@dataclass(frozen=True)
class LayerCost:
    """The cost of layers of one kind at one width, in seconds.

    Attributes:
        overhead: per call.
        multiply_add: per multiply-add.
        inputs, outputs, weights: per element.
    """

    overhead: float
    multiply_add: float
    inputs: float
    outputs: float
    weights: float


@dataclass(frozen=True)
class HardwareProfile:
    """The widths that a machine can multiply, and how fast.

    Args:
        name: the machine's name.
        rates: 10¹² operations per second (TOPS), two for each multiply-add, by bits. Bits are one number, or (weights,
            activations) if they differ. Include 32 bits, the width of float32, if the machine has it.
        bandwidth: memory bandwidth in 10⁹ bytes per second; None if memory is no limit.
        costs: measured costs by kind of layer and bits; they take precedence over rates and bandwidth in a layer's
            latency.
        source: where the figures come from.

    Raises:
        ValueError: there are no rates; or bits, rates, the bandwidth or costs are not positive numbers.
    """

    name: str
    rates: Mapping[Any, float] = field(hash=False)
    bandwidth: float | None = None
    costs: Mapping[str, Mapping[float, LayerCost]] = field(default_factory=dict, hash=False)
    source: str = ""

    def __post_init__(self) -> None:
        rates = self.rates if isinstance(self.rates, Mapping) else {}
        numbers = [*(bits for width in rates for bits in _pair(width)), *rates.values()]
        if not numbers or not all(map(_is_positive, numbers)):
            raise ValueError(f"rates of {self.name} must map bits to TOPS, all above 0, got {self.rates!r}")
        if self.bandwidth is not None and not _is_positive(self.bandwidth):
            raise ValueError(f"bandwidth of {self.name} must be above 0, in 10⁹ bytes/s, got {self.bandwidth!r}")

    @classmethod
    def load(cls, machine: str | os.PathLike[str]) -> "HardwareProfile":
        """Load a machine that the package describes, by its short name, or one described in a TOML file.

        The file has name, source, optionally bandwidth, and a table of rates, whose keys are bits such as 8, or bits
        of weights and activations such as 2x8. `adapt profile --measure` writes one with costs as well.

        Raises:
            ValueError: there is no such machine, or the file does not describe one.
            OSError: the file cannot be read.
        """
        path = MACHINES / f"{machine}.toml" if str(machine) in machines() else Path(machine)
        if not path.is_file():
            raise ValueError(f"there is no machine {machine}: name a TOML file, or one of {', '.join(machines())}")
        try:
            return cls(**_arguments(tomllib.loads(path.read_text(encoding="utf-8"))))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{path} does not describe a machine: {error}") from error

    @property
    def float_bits(self) -> float:
        """The width to compare with: 32 bits, or the widest weights that the machine supports."""
        return min(FLOAT32_BITS, max(_pair(width)[0] for width in self.rates))

    def product(self, weight_bits: float, activation_bits: float) -> tuple[float, float]:
        """Return the narrowest supported bits of weights and activations that fit these.

        Raises:
            ValueError: more bits than the machine supports.
        """
        pairs = {_pair(width): rate for width, rate in self.rates.items()}
        holding = [pair for pair in pairs if pair[0] >= weight_bits and pair[1] >= activation_bits]
        if not holding:
            for number, bits in enumerate((weight_bits, activation_bits)):
                bounded(f"bits on {self.name}", bits, 0, max(pair[number] for pair in pairs))
            raise ValueError(
                f"{self.name} cannot multiply weights of {weight_bits} by activations of {activation_bits} bits"
            )
        return min(holding, key=lambda pair: (pair[0] * pair[1], -pairs[pair]))

    def width(self, bits: ArrayLike) -> Array:
        """Return the bits of the weights in `product(bits, bits)`, in the same shape.

        Raises:
            ValueError: more bits than the machine supports.
        """
        return self._each(lambda pair: pair[0], bits, bits)

    def rate(self, weight_bits: ArrayLike, activation_bits: ArrayLike | None = None) -> Array:
        """Return the TOPS of products of these widths; the activations are as wide as the weights by default.

        Args:
            weight_bits, activation_bits: bits, of shapes that broadcast.

        Raises:
            ValueError: more bits than the machine supports.
        """
        rates = {_pair(width): rate for width, rate in self.rates.items()}
        activations = weight_bits if activation_bits is None else activation_bits
        return self._each(rates.__getitem__, weight_bits, activations)

    def _each(self, figure: Any, weight_bits: ArrayLike, activation_bits: ArrayLike) -> Array:
        weights, activations = (bounded(f"bits on {self.name}", b, 0, np.inf) for b in (weight_bits, activation_bits))
        each = np.vectorize(lambda w, a: figure(self.product(w, a)), otypes=[np.float64])
        return np.asarray(each(weights, activations))


def machines() -> list[str]:
    """Return the short names of the machines that the package describes."""
    return sorted(path.stem for path in MACHINES.glob("*.toml"))


def _pair(width: Width) -> tuple[float, float]:
    return width if isinstance(width, tuple) else (width, width)


def _is_positive(value: object) -> bool:
    return is_number(value) and 0 < value < math.inf


def _arguments(content: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a profile from the contents of a TOML file.

    Raises:
        ValueError: a key that a profile does not have, or bits that are not numbers.
    """
    unknown = content.keys() - {entry.name for entry in fields(HardwareProfile)}
    if unknown:
        raise ValueError(f"it has the unknown key {min(unknown)!r}")
    costs = {
        kind: {float(bits): LayerCost(**values) for bits, values in table.items()}
        for kind, table in content.get("costs", {}).items()
    }
    rates = {
        tuple(map(float, bits.split("x"))) if "x" in bits else float(bits): r for bits, r in content["rates"].items()
    }
    return {**content, "rates": rates, "costs": costs}


A100, T4 = HardwareProfile.load("a100"), HardwareProfile.load("t4")
