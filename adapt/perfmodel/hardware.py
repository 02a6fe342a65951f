"""Machines that support only some widths: a layer runs at the next wider one, and zeros cost as much as the rest."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from adapt.arguments import is_number, number
from adapt.perfmodel.checked_arrays import (
    FLOAT32_BITS,
    Array,
    ArrayLike,
    Operations,
    amount,
    as_operations,
    as_rows,
    bounded,
)


@dataclass(frozen=True)
class HardwareProfile:
    """The widths that a machine can multiply, and how fast.

    Args:
        name: the machine's name.
        rates: bits to 10¹² operations per second (TOPS). It should include 32 bits, the width of float32.

    Raises:
        ValueError: no rates, or bits or rates that are not positive.
    """

    name: str
    rates: Mapping[float, float] = field(hash=False)

    def __post_init__(self) -> None:
        numbers = [*self.rates, *self.rates.values()] if isinstance(self.rates, Mapping) else []
        if not numbers or not all(is_number(number) and 0 < number < math.inf for number in numbers):
            raise ValueError(f"rates of {self.name} must map bits to TOPS, all above 0, got {self.rates!r}")

    def width(self, bits: ArrayLike) -> Array:
        """Return the narrowest supported width that holds `bits`, in bits, in the same shape.

        Raises:
            ValueError: more bits than the machine supports.
        """
        widths = np.sort(np.asarray(list(self.rates), dtype=np.float64))
        return np.asarray(widths[np.searchsorted(widths, bounded(f"bits on {self.name}", bits, 0, widths[-1]))])

    def rate(self, bits: ArrayLike) -> Array:
        """Return the TOPS at the narrowest supported width that holds `bits`, in the same shape.

        Raises:
            ValueError: more bits than the machine supports.
        """
        return np.asarray(np.vectorize(self.rates.__getitem__, otypes=[np.float64])(self.width(bits)))


A100 = HardwareProfile("NVIDIA A100", {1: 4992, 4: 1248, 8: 624, 16: 312, 32: 19.5})
"""AQT table 1 (dense tensor cores), and float32 without tensor cores from the maker's data sheet."""

T4 = HardwareProfile("NVIDIA T4", {4: 260, 8: 130, 16: 65, 32: 8.1})
"""The maker's data sheet."""


def profiled_inference_speedup(
    operations: Operations,
    word_length: ArrayLike,
    profile: HardwareProfile,
    *,
    other_bits: float = FLOAT32_BITS,
) -> float:
    """Σ ops/rate(other) / Σ ops/rate(WL) at the last row: `inference_speedup` on a real machine.

    Args:
        operations: multiply-adds per sample [layers].
        word_length: WL, bits, [rows, layers] or one row; the activations are as wide.
        profile: the machine.
        other_bits: the width of the other network: 32 for float32, 16 for bfloat16.

    Raises:
        TypeError: an argument that is not numeric, or a profile that is not a HardwareProfile.
        ValueError: a number out of its range, a width that the machine lacks, or shapes that do not match.
    """
    counts, lengths = _checked(operations, word_length, profile)
    other = float((counts / profile.rate(number("other_bits", other_bits))).sum())
    return other / float((counts / profile.rate(lengths[-1])).sum())


def profiled_training_speedup(
    operations: Operations,
    word_length: ArrayLike,
    profile: HardwareProfile,
    *,
    other_bits: float = FLOAT32_BITS,
    backward_bits: float = FLOAT32_BITS,
    backward_factor: float = 2,
) -> float:
    """`training_speedup` in its physical form on a real machine, without the overhead of switching.

    Args:
        operations, word_length, profile, other_bits: as in `profiled_inference_speedup`, except that every row counts
            and `other_bits` is the width of the other run's forward pass.
        backward_bits: width of the backward pass of both runs.
        backward_factor: products in the backward pass for each one in the forward pass.

    Raises:
        TypeError, ValueError: as `profiled_inference_speedup`.
    """
    counts, lengths = _checked(operations, word_length, profile)
    backward = amount("backward_factor", backward_factor) / profile.rate(number("backward_bits", backward_bits))
    ours = (1 / profile.rate(lengths) + backward) @ counts
    other = (1 / profile.rate(number("other_bits", other_bits)) + backward) * counts.sum()
    return float(other / ours.mean())


def _checked(operations: Operations, word_length: ArrayLike, profile: object) -> tuple[Array, Array]:
    """Return the multiply-adds [layers] and the word lengths [rows, layers]."""
    if not isinstance(profile, HardwareProfile):
        raise TypeError(f"profile must be a HardwareProfile, such as adapt.perfmodel.A100, got {profile!r:.80}")
    counts = as_operations(operations)
    lengths, _ = as_rows(word_length, 1.0, len(counts))
    return counts, lengths
