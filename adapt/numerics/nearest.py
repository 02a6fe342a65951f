"""Rounding to nearest in plain torch operations, for programs that other tools run."""

import numpy as np
import torch
from torch import Tensor

from adapt.numerics.fixed_point import largest_held
from adapt.numerics.format import Format

TYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Types of activations that are rounded, in float32; tensors of other types are left as they are."""


class NearestRounding:
    """Rounds tensors of `TYPES` in one format for the whole tensor, with the bits of `Format.quantize`.

    It holds Python numbers instead of tensors, so it is copied, runs on every device, and can be compiled, traced and
    exported.
    """

    def __init__(self, form: Format) -> None:
        self.step = float(form.step)
        self.is_sign = bool(form.signed) and int(form.word_length) == 1
        # One signed bit has the levels ±½ of twice its step. Computed in float32, as in training.
        self.inverse = float(np.float32(1) / np.float32(self.step * (2 if self.is_sign else 1)))
        low, high, fraction = int(form.low), int(form.high), form.fraction_length
        if fraction is not None:
            low, high = -largest_held(-low, int(fraction)), largest_held(high, int(fraction))
        self.low, self.high = float(low), float(high)

    def __call__(self, x: Tensor) -> Tensor:
        """Return Q(x), of the type and shape of x."""
        scaled = (x if x.dtype == torch.float32 else x.float()) * self.inverse
        if self.is_sign:
            words = 2 * torch.round(scaled.clamp(-0.5, 0.5) - 0.5) + 1
        else:
            words = torch.round(scaled).clamp(self.low, self.high)
        rounded = words * self.step
        return rounded if x.dtype == torch.float32 else rounded.to(x.dtype)
