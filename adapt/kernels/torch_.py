"""The kernels in plain torch operations: slow, on every device, and the reference for the others' bits.

`adapt.kernels.Kernels` says what each function does. Here tensors may be float64 too; the work is then done in float64.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapt.kernels.stream import FIRST_MULTIPLIER, SECOND_MULTIPLIER, UNIFORM_STEP, flat, require_layout


def uniform(numel: int, key: int, offset: int, *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The stream's draws for elements offset … offset + numel − 1: [numel] in [0, 1)."""
    # Torch has no complete uint32 arithmetic. The low 32 bits of int32 products are the same, and a mask turns its
    # arithmetic right shift into a logical one.
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


def _rounded(x: Tensor, grid: NDArray[np.floating], key: int, offset: int, stochastic: bool) -> Tensor:
    """Q(x) for a vector x, as a new one."""
    scale, step, low, high = grid.tolist()
    if scale == 0:
        return x.clone()
    v = x * scale
    if stochastic:
        # Comparing u with the fraction is exact; floor(v + u) would round the sum and move values that are on the grid.
        floor = v.floor()
        u = uniform(x.numel(), key, offset, dtype=x.dtype, device=x.device)
        r = torch.where(u < v - floor, floor + 1, floor)
    else:
        r = v.round()
    return r.clamp_(low, high).mul_(step)


@torch.no_grad()
def quantize_(
    sources: Sequence[Tensor],
    outputs: Sequence[Tensor],
    grids: NDArray[np.floating],
    keys: NDArray[np.uint64],
    offsets: NDArray[np.int64],
    nonzeros: Tensor | None = None,
    *,
    stochastic: bool,
) -> None:
    require_layout(None, sources=sources, outputs=outputs)
    for i, (source, output) in enumerate(zip(sources, outputs, strict=True)):
        quantized = _rounded(flat(source), grids[i], int(keys[i]), int(offsets[i]), stochastic)
        flat(output).copy_(quantized)
        if nonzeros is not None:
            nonzeros[i] = quantized.count_nonzero()


@torch.no_grad()
def store_(
    parameters: Sequence[Tensor],
    masters: Sequence[Tensor],
    grids: NDArray[np.floating],
    keys: NDArray[np.uint64],
    offsets: NDArray[np.int64],
    nonzeros: Tensor,
    *,
    stochastic: bool,
) -> None:
    require_layout(None, parameters=parameters, masters=masters)
    for parameter, master in zip(parameters, masters, strict=True):
        master.copy_(parameter)
    quantize_(masters, parameters, grids, keys, offsets, nonzeros, stochastic=stochastic)


@torch.no_grad()
def squared_norms_(tensors: Sequence[Tensor], out: Tensor) -> None:
    require_layout(None, tensors=tensors)
    for i, tensor in enumerate(tensors):
        out[i] = _squared_norm(tensor)


@torch.no_grad()
def restore_(
    parameters: Sequence[Tensor] | None,
    masters: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    sums: Sequence[Tensor | None],
    squared: Tensor,
    l1: Sequence[float] | NDArray[np.floating],
    l2: Sequence[float] | NDArray[np.floating],
    statistics: Tensor,
    *,
    normalize: bool,
) -> None:
    written = [None] * len(masters) if parameters is None else parameters
    require_layout(None, masters=masters, parameters=written, gradients=gradients, sums=sums)
    finite = squared.isfinite()
    factors = _factors(squared, normalize)
    for i, (parameter, master, gradient, total) in enumerate(zip(written, masters, gradients, sums, strict=True)):
        if parameter is not None:
            parameter.copy_(master)
        if gradient is not None:
            if total is not None:
                total.copy_(torch.where(finite[i], total + gradient, total))
            treated = gradient * factors[i].to(gradient.dtype)
            # Separate products and sums: torch's add with alpha fuses them and would round once instead of twice.
            first, second = float(np.float32(l1[i])), float(np.float32(l2[i]))
            if first or second:
                treated += master.sign() * first + master * second
            gradient.copy_(torch.where(finite[i], treated, 0))
        statistics[i, 0] = 0 if total is None else _squared_norm(total)
        statistics[i, 1] = master.abs().sum(dtype=torch.float64)
        statistics[i, 2] = _squared_norm(master)


def _factors(squared: Tensor, normalize: bool) -> Tensor:
    """What each gradient is multiplied with, float32 [L]. The cap keeps a vanishing norm from making it infinite."""
    if not normalize:
        return torch.ones_like(squared, dtype=torch.float32)
    largest = torch.finfo(torch.float32).max
    return torch.where(squared > 0, squared.sqrt().reciprocal().clamp_(max=largest), 1).to(torch.float32)


def _squared_norm(tensor: Tensor) -> Tensor:
    return tensor.double().square_().sum()
