"""The passes over activations and errors that every back end offers, and the tables of sites that they share.

A site is a place where values are rounded: the input, the output or the error of one layer. All sites of a model
share four small tensors, so a precision that moves is data and no part of a compiled program.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapt.kernels import companion

FROZEN, RECORD, NOISE = 0, 1, 2
"""What a training pass does at a site: round to nearest and remember nothing; remember the largest magnitude and the
draws; round stochastically as well."""

MASKED = 256
"""Elements behind each flag of a mask."""

DECAY = 0.99
"""What is left after a step of a range that is not reached any more: it loses a bit in 69 steps."""

TYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Element types that can be rounded; every other is left as it is."""


@dataclass(frozen=True)
class Sites:
    """The tables of all sites, on one device. S is the number of sites.

    Attributes:
        formats: float32 [S, 5]: a row (2^FL, 2^−FL, low, high) of `adapt.rounding.grid`, where scale 0 leaves values
            as they are, and the mode FROZEN, RECORD or NOISE.
        keys: int64 [S]: the bits of each site's key of the random stream in this step.
        drawn: int64 [S]: how many elements of the stream are used up in this step.
        peaks: float32 [S]: the largest finite magnitude met in this step.
    """

    formats: Tensor
    keys: Tensor
    drawn: Tensor
    peaks: Tensor

    @cached_property
    def are_on_cpu(self) -> bool:
        """Whether the CPU has them."""
        return self.formats.is_cpu

    @cached_property
    def host(self) -> tuple[NDArray[Any], ...]:
        """The four as NumPy arrays over the same memory, where that is the CPU's."""
        return tuple(tensor.numpy() for tensor in (self.formats, self.keys, self.drawn, self.peaks))


class ActivationKernels(Protocol):
    """One pass over one tensor.

    The tensors of a call are dense, of one shape, strides and device, and of one of `TYPES`; they need not be of the
    same type. A short type is rounded as float32 is, to those grid values inside the range that it holds. What lies in
    the range [minimum, maximum] is decided on the values before they are rounded; NaN does not.

    A mask is uint8 [mask_size(numel)]: a byte for each element in memory order, then a flag for every MASKED elements.
    Where the flag is 0 all elements lie inside and the bytes hold nothing.
    """

    def forward(
        self,
        source: Tensor,
        output: Tensor,
        mask: Tensor | None,
        sites: Sites,
        site: int,
        *,
        training: bool,
        replay: bool,
    ) -> bool:
        """output ← Q(source), and say in `mask` what lies in the range. The output may be the source.

        A training pass continues the site's stream and remembers the largest magnitude, as the site's mode asks; one
        with `replay` draws again what the last one drew and remembers nothing. Otherwise rounding is to nearest.

        Returns:
            Whether the mask is needed: False only where it is known, without waiting, that all elements lie inside.
        """

    def backward(self, gradient: Tensor, output: Tensor, mask: Tensor | None, sites: Sites, site: int) -> None:
        """output ← Q(gradient) where the mask says inside, 0 elsewhere; without rounding where `site` is −1.

        The rounding is that of a training pass. The output may be the gradient.
        """

    def renew(
        self,
        sites: Sites,
        keys: NDArray[np.uint64],
        ranges: Tensor,
        words: Tensor,
        otherwise: Tensor,
        *,
        mode: int,
        ended: bool,
    ) -> None:
        """Write the keys and the formats of the passes that follow.

        Where words[i] > 0 and ranges[i] > 0 the row is that of words[i] bits with the largest fraction length that
        holds values up to ranges[i], saturating by at most half a step; elsewhere it is otherwise[i].

        Args:
            keys: uint64 [S], of `adapt.rounding.stream_keys`.
            ranges: float32 [S], the running maximum of |x|.
            words: int32 [S], the word length of a format that follows its range, 0 for one that does not.
            otherwise: float32 [S, 4].
            mode: FROZEN, RECORD or NOISE, for all sites.
            ended: whether a step has ended. Then the streams start anew, and the step's peaks, where there are any,
                are first taken into the ranges: the larger of the peak and of DECAY times the range.
        """


def mask_size(numel: int) -> int:
    """Bytes of a mask for `numel` elements."""
    return numel + -(-numel // MASKED)


def activation_kernels(device: torch.device) -> ActivationKernels:
    """The passes of the back end that `adapt.kernels.backend` chooses for this device."""
    return cast(ActivationKernels, companion("activation", device))
