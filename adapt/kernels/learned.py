"""The passes of quantisers with a learned step that every back end offers, and the gradient scalings that they know.

A site is a place where values are rounded. Its row of the table holds

    (inverse, step, low, high, offset):     Q(x) = step·(rint(v − offset) + offset),  v = clip(x·inverse, low, high)

with low, high and the offset in units of the step: a whole range has offset 0, one signed bit has the levels ±1/2 and
offset 1/2. A row with inverse 0 leaves values as they are.
"""

from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor

from adapt.kernels import companion

SCALINGS = ("ste", "pbgs", "ewgs", "acos", "tanh", "invtanh")
"""By what the gradient is scaled on its way back through rounding: see `adapt.learned.scaling`."""

SUMS = 4
"""Figures of a backward pass: see `LearnedKernels.backward`."""


class Row(NamedTuple):
    """One row of the table, or several: tensors that broadcast with the values."""

    inverse: Tensor
    step: Tensor
    low: Tensor
    high: Tensor
    offset: Tensor


class LearnedKernels(Protocol):
    """One pass over one tensor. The tensors of a call are dense and of one shape, strides and device.

    They are float32, bfloat16 or float16; what is computed is float32.
    """

    def forward(self, source: Tensor, output: Tensor, rows: Tensor, site: int) -> None:
        """output ← Q(source). The output may be the source; `rows` is float32 [sites, 5]."""

    def backward(
        self,
        gradient: Tensor,
        source: Tensor,
        output: Tensor,
        rows: Tensor,
        site: int,
        sums: Tensor,
        *,
        scaling: int,
        delta: float,
    ) -> None:
        """output ← the gradient with regard to the source; sums[site] += what the step and the range get of it.

        With r = rint(v − offset) + offset, u = v − r and rounding's derivative s = 1 + δ·f(u) (f and the factor
        sign(g) of the scaling), the output is g·s where low ≤ x·inverse ≤ high and 0 elsewhere. `sums` is float64
        [sites, 4] on the device and gets

            Σ g·r − g·s·v,    Σ g·s above the range,    Σ g·s below the range,    Σ g².

        The output may be the gradient.
        """


def learned_kernels(device: torch.device) -> LearnedKernels:
    """The passes of the back end that `adapt.kernels.backend` chooses for this device."""
    return cast(LearnedKernels, companion("learned", device))
