"""The passes over activations and errors that every back end offers, and the tables of sites that they share.

A site is a place where values are rounded: the input, the output or the error of one layer. All sites of a model
share five tensors, so that precisions that change are data, not constants in a compiled program.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapt.kernels import family_module

FROZEN, RECORD, NOISE = 0, 1, 2
"""The mode of a site in a training pass. FROZEN: round to nearest and record nothing. RECORD: round to nearest, and
record the largest magnitude and the number of draws. NOISE: round stochastically, and record both."""

MASKED = 256
"""The number of elements to which each flag of a mask applies."""

DECAY = 0.99
"""The factor by which a range shrinks in a step whose values do not reach it: it loses a bit in 69 steps."""

SAMPLE = 2048
"""The number of values of a site that are kept to judge its range; more would only take longer."""


@dataclass(frozen=True)
class SiteTables:
    """The tables of all sites, on one device. S is the number of sites.

    Attributes:
        formats: float32 [S, 6]: a row (2^FL, 2^−FL, low, high) of `adapt.rounding.grid`, where 2^FL = 0 leaves values
            as they are; the mode FROZEN, RECORD or NOISE; and whether training passes leave a sample, 1 or 0.
        keys: int64 [S]: the bits of each site's key of the random stream in this step.
        drawn: int64 [S]: the number of elements of the stream that have been used in this step.
        peaks: float32 [S]: the largest finite magnitude so far in this step.
        samples: float32 [S, SAMPLE]: evenly spaced values, before rounding, of the last pass that left a sample; 0 for
            values that are not finite, and in the places that a small tensor leaves.
    """

    formats: Tensor
    keys: Tensor
    drawn: Tensor
    peaks: Tensor
    samples: Tensor

    @cached_property
    def are_on_cpu(self) -> bool:
        """Whether the tables are in the CPU's memory."""
        return self.formats.is_cpu

    @cached_property
    def host(self) -> tuple[NDArray[Any], ...]:
        """The five tables as NumPy arrays over the same memory, which must be the CPU's."""
        return tuple(tensor.numpy() for tensor in (self.formats, self.keys, self.drawn, self.peaks, self.samples))

    def sample_stride(self, numel: int) -> int:
        """Return the distance in memory of the values of a sample. It is odd, in order to visit all channels."""
        return max(-(-numel // self.samples.shape[1]), 1) | 1


class ActivationKernels(Protocol):
    """The passes of a back end, each over one tensor.

    The tensors of a call are dense, share shape, strides and device, and have one of `adapt.numerics.nearest.TYPES`.
    A 16-bit type is rounded like float32, to those grid values inside the range that it can represent. An element is
    inside the range if its value before rounding lies in [minimum, maximum]; NaN is not inside.

    A mask is uint8 [mask_size(numel)]: a byte for each element in memory order, then a flag for every MASKED elements.
    Where the flag is 0 all elements are inside and their bytes are undefined.
    """

    def forward(
        self,
        source: Tensor,
        output: Tensor,
        mask: Tensor | None,
        sites: SiteTables,
        site: int,
        *,
        training: bool,
        replay: bool,
    ) -> bool:
        """output ← Q(source), and mark in `mask` which elements are inside the range. The output may be the source.

        A training pass continues the site's stream, records the largest magnitude and leaves a sample, depending on the
        site's mode; with `replay` it repeats the draws of the last pass and records nothing. Other passes round to
        nearest.

        Returns:
            Whether the mask is needed: False only if it is known, without waiting, that all elements are inside.
        """

    def backward(self, gradient: Tensor, output: Tensor, mask: Tensor | None, sites: SiteTables, site: int) -> None:
        """output ← Q(gradient) where the mask says inside, 0 elsewhere; without rounding if `site` is −1.

        Rounds like a training pass. The output may be the gradient.
        """

    def renew(
        self,
        sites: SiteTables,
        keys: NDArray[np.uint64],
        ranges: Tensor,
        shifts: Tensor,
        words: Tensor,
        otherwise: Tensor,
        *,
        mode: int,
        ended: bool,
        sampled: bool,
    ) -> None:
        """Write the keys and the formats for the next passes.

        If words[i] > 0 and ranges[i] > 0, row i is the format of words[i] bits whose fraction is shifts[i] bits longer
        than the longest that saturates values up to ranges[i] by at most half a step. Otherwise it is otherwise[i].

        Args:
            sites: the tables to write.
            keys: uint64 [S], from `adapt.rounding.stream_keys`.
            ranges: float32 [S], the running maximum of |x|.
            shifts: int32 [S], by how many octaves the range of a format lies below the running maximum.
            words: int32 [S], the word length of a format that follows its range, 0 for one that does not.
            otherwise: float32 [S, 4], the rows of `adapt.rounding.grid` for the other formats.
            mode: FROZEN, RECORD or NOISE, for all sites.
            ended: whether a step has ended. Then the streams restart and, for sites with a peak in the step, the range
                first becomes the larger of the peak and DECAY times the range.
            sampled: whether the next training passes leave samples, where words[i] > 0 and unless the mode is FROZEN.
        """


def mask_size(numel: int) -> int:
    """Return the size in bytes of a mask for `numel` elements."""
    return numel + -(-numel // MASKED)


def activation_kernels(device: torch.device) -> ActivationKernels:
    """Return the passes of the back end that `adapt.kernels.backend` chooses for this device."""
    return cast(ActivationKernels, family_module("activation", device))
