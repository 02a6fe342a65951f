"""The kernels in plain torch operations: slow, on every device, and the reference for the others' bits.

`adapt.kernels.Kernels` documents the functions. Here tensors may also be float64; the arithmetic is then float64.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapt.kernels.stream import (
    FIRST_MULTIPLIER,
    SECOND_MULTIPLIER,
    UNIFORM_STEP,
    OptionalTensors,
    Tensors,
    flat,
    present,
    require_layout,
)
from adapt.kernels.weights import Rounding, Treatment


def uniform(numel: int, key: int, offset: int, *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the stream's draws for elements offset … offset + numel − 1: [numel] in [0, 1)."""
    # torch's uint32 arithmetic is incomplete. int32 products have the same low 32 bits, and a mask turns an arithmetic
    # right shift into a logical one.
    x = torch.arange(offset, offset + numel, dtype=torch.int64, device=device).to(torch.int32)
    x ^= _signed(key & 0xFFFFFFFF)
    x ^= (x >> 16) & 0xFFFF
    x *= _signed(FIRST_MULTIPLIER)
    x ^= (x >> 15) & 0x1FFFF
    x ^= _signed(key >> 32)
    x *= _signed(SECOND_MULTIPLIER)
    x ^= (x >> 16) & 0xFFFF
    return ((x >> 8) & 0xFFFFFF).to(dtype) * UNIFORM_STEP


def _signed(bits: int) -> int:
    return bits - (1 << 32) if bits >> 31 else bits


def rounded(x: Tensor, grid: NDArray[np.floating], key: int, offset: int, stochastic: bool) -> Tensor:
    """Return Q(x) for a vector x, as a new tensor."""
    scale, step, low, high = grid.tolist()
    if scale == 0:
        return x.clone()
    v = x * scale
    if stochastic:
        # Comparing u with the fraction is exact. The sum in floor(v + u) is rounded, which would move grid values.
        floor = v.floor()
        u = uniform(x.numel(), key, offset, dtype=x.dtype, device=x.device)
        r = torch.where(u < v - floor, floor + 1, floor)
    else:
        r = v.round()
    return r.clamp_(low, high).mul_(step)


@torch.no_grad()
def quantize_(sources: Tensors, outputs: Tensors, rounding: Rounding, figures: Tensor | None = None) -> None:
    require_layout(None, sources=sources, outputs=outputs)
    for i, (source, output) in enumerate(zip(sources, outputs, strict=True)):
        key, offset = int(rounding.keys[i]), int(rounding.offsets[i])
        quantized = rounded(flat(source), rounding.grids[i], key, offset, rounding.stochastic)
        if figures is not None:
            figures[i, 0] = quantized.count_nonzero()
            figures[i, 1] = source.abs().sum(dtype=torch.float64)
            figures[i, 2] = _squared_norm(source)
        flat(output).copy_(quantized)


@torch.no_grad()
def store_(parameters: Tensors, masters: Tensors, rounding: Rounding, figures: Tensor) -> None:
    require_layout(None, parameters=parameters, masters=masters)
    for parameter, master in zip(parameters, masters, strict=True):
        master.copy_(parameter)
    quantize_(masters, parameters, rounding, figures)


@torch.no_grad()
def squared_norms_(tensors: OptionalTensors, out: Tensor) -> None:
    require_layout(None, present=present(tensors), tensors=tensors)
    for i, tensor in enumerate(tensors):
        out[i] = math.nan if tensor is None else _squared_norm(tensor)


@torch.no_grad()
def add_(sums: OptionalTensors, gradients: OptionalTensors, squared: Tensor, squared_sums: Tensor) -> None:
    require_layout(None, present=present(sums, gradients), sums=sums, gradients=gradients)
    for i, (total, gradient) in enumerate(zip(sums, gradients, strict=True)):
        if total is not None and gradient is not None:
            total.copy_(torch.where(squared[i].isfinite(), total + gradient, total))
        squared_sums[i] = 0 if total is None else _squared_norm(total)


def accumulate_(sums: OptionalTensors, gradients: OptionalTensors, squared: Tensor, squared_sums: Tensor) -> None:
    squared_norms_(gradients, squared)
    add_(sums, gradients, squared, squared_sums)


@torch.no_grad()
def restore_(parameters: Tensors | None, masters: Tensors, gradients: OptionalTensors, treatment: Treatment) -> None:
    written = [None] * len(masters) if parameters is None else parameters
    require_layout(None, masters=masters, parameters=written, gradients=gradients)
    factors = _factors(treatment)
    for i, (parameter, master, gradient) in enumerate(zip(written, masters, gradients, strict=True)):
        if parameter is not None:
            parameter.copy_(master)
        if gradient is not None:
            gradient.copy_(_treated(gradient, master, factors[i], treatment, i))


@torch.no_grad()
def descend_(
    parameters: Tensors,
    masters: Tensors,
    gradients: OptionalTensors,
    buffers: OptionalTensors,
    treatment: Treatment,
    rates: NDArray[np.floating],
    rounding: Rounding,
    figures: Tensor,
) -> None:
    require_layout(None, parameters=parameters, masters=masters, gradients=gradients, buffers=buffers)
    factors = _factors(treatment)
    for i, (master, gradient, buffer) in enumerate(zip(masters, gradients, buffers, strict=True)):
        if gradient is None:
            continue
        # Separate products and sums: torch's add with alpha fuses them and rounds once instead of twice.
        rate, sign, decay, momentum, kept, nesterov = np.asarray(rates[i], np.float32).tolist()
        direction = _treated(gradient, master, factors[i], treatment, i) * sign
        if decay:
            direction += master * decay
        if buffer is not None:
            buffer.mul_(momentum).add_(direction * kept)
            direction = direction + buffer * momentum if nesterov else buffer
        master.add_(direction * rate)
    quantize_(masters, parameters, rounding, figures)


def _treated(gradient: Tensor, master: Tensor, factor: Tensor, treatment: Treatment, i: int) -> Tensor:
    """Return the i-th gradient after its treatment, as a new tensor."""
    treated = gradient * factor.to(gradient.dtype)
    l1, l2 = float(np.float32(treatment.l1[i])), float(np.float32(treatment.l2[i]))
    if l1 or l2:
        treated += master.sign() * l1 + master * l2
    return torch.where(factor > 0, treated, 0)


def _factors(treatment: Treatment) -> Tensor:
    """Return the factor of each gradient, float32 [L]; 0 for one that is not finite.

    It is capped at the largest float32 number: a vanishing norm must not make it infinite.
    """
    squared = treatment.squared
    factors = torch.ones_like(squared, dtype=torch.float32)
    if treatment.normalize:
        largest = torch.finfo(torch.float32).max
        factors = torch.where(squared > 0, squared.sqrt().reciprocal().clamp_(max=largest), 1).to(torch.float32)
    return torch.where(squared.isfinite(), factors, 0)


def _squared_norm(tensor: Tensor) -> Tensor:
    return tensor.double().square_().sum()
