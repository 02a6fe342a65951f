"""Budgets: target sizes, the penalty on an excess (Schaefer et al. eq. 2), and the projection to whole widths."""

import heapq
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adapt.arguments import check_number
from adapt.perfmodel.footprint import BITS_PER_KILOBYTE

LONGEST = 16
"""The most bits that a budget is spent on for one format."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How large the weights, or the activations of one sample, may be: `Budget(kilobytes=…)` or `Budget(bits=…)`.

    Args:
        kilobytes: size in kB of 8000 bits.
        bits: average word length; times the number of elements it is the size. If activations count by their maximum,
            the elements are those of the largest activation tensor.

    Raises:
        TypeError, ValueError: not exactly one of the two is given, or it is not a positive number.
    """

    kilobytes: float | None = None
    bits: float | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if value is not None}
        if len(given) != 1:
            raise ValueError(f"Budget takes kilobytes=… or bits=…, one of them, got {given or 'neither'}")
        ((name, value),) = given.items()
        check_number(name, value)
        if not 0 < float(value) < math.inf:
            raise ValueError(f"{name} must be a finite number above 0, got {value!r}")


@dataclass(frozen=True)
class Load:
    """The number of elements in each format of the weights or the activations, and how their sizes add up.

    Args:
        what: "weight" or "activation", for messages.
        numel: elements with each format, int64 [formats].
        by: "sum" or "max" over the formats.
    """

    what: str
    numel: NDArray[np.int64]
    by: str = "sum"

    def size(self, bits: NDArray[np.integer]) -> float:
        """Return Σ b·s, or max b·s, in kB."""
        sizes = self.numel * bits.astype(np.float64)
        return float(sizes.sum() if self.by == "sum" else sizes.max(initial=0)) / BITS_PER_KILOBYTE

    def target(self, budget: Budget) -> float:
        """Return the budget in kB."""
        if budget.kilobytes is not None:
            return float(budget.kilobytes)
        return float(budget.bits or 0) * self._unit / BITS_PER_KILOBYTE

    def average(self, kilobytes: float) -> float:
        """Return the word length at which all formats together have this size."""
        return kilobytes * BITS_PER_KILOBYTE / max(self._unit, 1)

    def check(self, budget: Budget, floor: int | NDArray[np.int64]) -> None:
        """Check that a budget can be met.

        Args:
            budget: the budget.
            floor: the fewest bits, of all formats or of each.

        Raises:
            ValueError: all formats at the fewest bits are larger than the budget.
        """
        fewest = np.broadcast_to(floor, self.numel.shape)
        smallest = self.size(fewest)
        if self.target(budget) < smallest * (1 - 1e-9):
            given = f"{budget.kilobytes:g} kB" if budget.kilobytes is not None else f"{budget.bits:g} bits on average"
            raise ValueError(
                f"{self.what}_budget of {given} cannot be met: {_spread(fewest)} bits, the fewest of a format, already "
                f"take {smallest:.4g} kB ({self.what}s of {self._unit} elements): allow more"
                + (", or floor=1" if (fewest > 1).all() else "")
                + (", or less in layer_bits" if fewest.min() < fewest.max() else "")
            )

    def excess(self, bits: NDArray[np.integer], target: float) -> float:
        """Return the excess of eq. 2, max(Σ b·s − t, 0), in kB."""
        return max(self.size(bits) - target, 0.0)

    def shares(self, bits: NDArray[np.integer]) -> NDArray[np.float64]:
        """Return the derivative of the size with respect to each width, kB per bit.

        For a maximum, only the formats that attain it have a share.
        """
        if self.by == "sum":
            return self.numel / BITS_PER_KILOBYTE
        sizes = self.numel * bits
        return np.where(sizes == sizes.max(initial=0), self.numel / BITS_PER_KILOBYTE, 0.0)

    @property
    def _unit(self) -> int:
        return int(self.numel.sum() if self.by == "sum" else self.numel.max(initial=0))


def beta_of(given: float | None, target: float) -> float:
    """Return β of eq. 2 for a budget of `target` kB, per kB²: the given one, or 100 over the squared budget.

    With the default, an excess of 10 % costs 1 for networks of any size.
    """
    return 100.0 / target**2 if given is None else given


def penalty(excess: float, beta: float) -> float:
    """Return one of the last two terms of Schaefer et al. eq. 2, β·max(Σ b·s − t, 0)²; `excess` in kB, β per kB²."""
    return beta * excess**2


def penalty_slope(excess: float, beta: float) -> float:
    """Return the penalty's derivative with respect to the size, per kB.

    Times a format's share (`Load.shares`), it is the derivative with respect to the format's width.
    """
    return 2 * beta * excess


def project(
    load: Load,
    bits: NDArray[np.int64],
    losses: NDArray[np.float64],
    target: float,
    *,
    floor: int | NDArray[np.int64],
    ceiling: int | NDArray[np.int64] = LONGEST,
) -> NDArray[np.int64]:
    """Return whole word lengths within the budget, as close to `bits` as it allows; int64 [formats].

    While the size is above the target, take a bit from the format that loses least for what it saves. Rounding noise
    is step²/12 per value, so one bit less means four times the noise; `losses` estimates the cost of each format's
    present noise from its gradients. Then spend what is left below the target, bit by bit, on the formats that gain
    most for their size and still fit. For a maximum nothing is left to spend.

    Args:
        load: sizes of the formats.
        bits: their widths.
        losses: Σg²·step² of each format.
        target: the budget in kB.
        floor: the fewest bits, of all formats or of each.
        ceiling: the most bits to which spare budget may lengthen a format, of all formats or of each.

    Raises:
        ValueError: the target is below the size at the fewest bits.
    """
    bits = bits.copy()
    fewest, most = np.broadcast_to(floor, bits.shape), np.broadcast_to(ceiling, bits.shape)
    free, short = load.numel > 0, f"{load.what}s of {target:g} kB would need less than {_spread(fewest)} bits"
    losses = np.maximum(np.nan_to_num(losses, nan=0.0, posinf=1e30), 1e-30)
    if load.by == "max":
        fit = np.floor(target * BITS_PER_KILOBYTE / np.maximum(load.numel, 1) + 1e-9).astype(np.int64)
        bits = np.where(free, np.minimum(bits, fit), bits)
        if (bits < fewest).any():
            raise ValueError(short)
        return bits
    numel = load.numel.tolist()
    size, room = int((load.numel * bits).sum()), math.floor(target * BITS_PER_KILOBYTE + 1e-6)
    giving = [(losses[i] / numel[i], i) for i in np.flatnonzero(free & (bits > fewest)).tolist()]
    heapq.heapify(giving)
    while size > room:
        if not giving:
            raise ValueError(short)
        cost, i = heapq.heappop(giving)
        bits[i] -= 1
        size -= numel[i]
        losses[i] *= 4
        if bits[i] > fewest[i]:
            heapq.heappush(giving, (cost * 4, i))
    taking = [(-losses[i] / numel[i], i) for i in np.flatnonzero(free & (bits < most)).tolist()]
    heapq.heapify(taking)
    while taking:
        gain, i = heapq.heappop(taking)
        if size + numel[i] <= room:
            bits[i] += 1
            size += numel[i]
            if bits[i] < most[i]:
                heapq.heappush(taking, (gain / 4, i))
    return bits


def _spread(bits: NDArray[np.int64]) -> str:
    """Return the range of some formats' fewest bits as text."""
    least, most = int(bits.min(initial=LONGEST)), int(bits.max(initial=0))
    return f"{least}" if least >= most else f"{least} to {most}"
