"""Bounds of learned word lengths, and how steps d and ranges q₊ are moved to keep within them."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapt.learned.quantizer import limit
from adapt.numerics import LONGEST_WORD


class WordBounds:
    """The fewest and the most bits of each of F formats.

    Args:
        lowest, highest: the bounds, int64 [F] on the host.
        signed: whether a format has both signs, bool [F] on the device; read in every call, because it may change.
        steps: the bounds of d, float32 [F] each on the device.
        floor: the fewest bits of any format.

    Attributes:
        allow_one: whether a format may have one bit, bool [F] on the device.
    """

    def __init__(
        self,
        lowest: NDArray[np.int64],
        highest: NDArray[np.int64],
        signed: Tensor,
        steps: tuple[Tensor, Tensor],
        *,
        floor: int,
    ) -> None:
        self._is_active = bool((lowest > floor).any() or (highest < LONGEST_WORD).any())
        # Copied now, because formats are set in every update, which should not copy to the device.
        self._lowest, self._highest = (torch.from_numpy(bits).to(signed.device) for bits in (lowest, highest))
        self._is_raised, self._is_lowered = self._lowest > floor, self._highest < LONGEST_WORD
        self._signed, self._steps = signed, steps
        self.allow_one = self._lowest <= 1

    def with_room(self, maximum: Tensor) -> Tensor:
        """Return q₊, [F], moved where the bounds of d would keep a word length from reaching its own bounds."""
        if not self._is_active:
            return maximum
        least, most = self._limits
        maximum = torch.where(self._is_raised, maximum.clamp(min=least * self._steps[0]), maximum)
        return torch.where(self._is_lowered & ~self._is_sign, maximum.clamp(max=most * self._steps[1]), maximum)

    def fitted(self, step: Tensor, maximum: Tensor) -> Tensor:
        """Return d, [F], moved so that the word lengths are within their bounds.

        A word at its upper bound gets no finer step; one at its lower bound is fully used: d = q₊/(2^(b−1) − 1).
        """
        if not self._is_active:
            return step
        least, most = self._limits
        step = torch.where(self._is_raised, torch.minimum(step, maximum / least.clamp(min=1)), step)
        step = torch.where(self._is_lowered, torch.maximum(step, maximum / most.clamp(min=1)), step)
        return torch.where(self._is_sign, 4 * maximum, step)

    @property
    def _limits(self) -> tuple[Tensor, Tensor]:
        """The largest multiples of the step at the lower and at the upper bound, [F] each."""
        return limit(self._lowest, self._signed), limit(self._highest, self._signed)

    @property
    def _is_sign(self) -> Tensor:
        """Where the upper bound is one signed bit, bool [F]."""
        return (self._highest == 1) & self._signed
