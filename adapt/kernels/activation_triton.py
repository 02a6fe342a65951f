"""The passes over activations for CUDA, compiled by Triton: one launch each, the state read where it lies.

`adapt.kernels.activation.ActivationKernels` says what each function does. No call waits for the device, and none hands
over a number that changes from step to step.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from adapt.kernels.activation import FROZEN, MASKED, NOISE, State
from adapt.kernels.activation_torch import follow
from adapt.kernels.triton_device import _nearest_integer, _uniform

__all__ = ["backward", "follow", "forward"]

GROUPS = 4
"""Groups of MASKED elements that one program takes."""

_FROZEN, _NOISE = tl.constexpr(float(FROZEN)), tl.constexpr(float(NOISE))
_INFINITE_BITS = tl.constexpr(0x7F800000)
_LARGEST_HALF = tl.constexpr(65504.0)
_SMALLEST_NORMAL_HALF = tl.constexpr(2.0**-14)
_LONGEST = tl.constexpr(2.0**31)  # steps in the range of the longest word
_HALF_STEPS = tl.constexpr(2.0**24)  # the smallest step of float16 is 2^-24


@triton.jit
def _bounds(row, HALF: tl.constexpr):
    """(scale, step, low, high) of a site's row; the bounds are cut to what float16 (16) or bfloat16 (19) holds."""
    scale, step, low, high = tl.load(row), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3)
    if HALF == 16:
        ends = tl.minimum(_LARGEST_HALF * scale, _LONGEST).to(tl.int64).to(tl.float32)
        bound = tl.minimum(high, ends) * step
        normal = (bound.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
        subnormal = tl.minimum(bound * _HALF_STEPS, 1024.0).to(tl.int64).to(tl.float32) / _HALF_STEPS
        low = tl.maximum(low, -ends)
        high = tl.where(bound < _SMALLEST_NORMAL_HALF, subnormal, normal) * scale
    if HALF == 19:
        bound = ((high * step).to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)
        high = bound * scale
    return scale, step, low, high


@triton.jit
def _rounded(x, index, scale, step, low, high, key, noise):
    v = x * scale
    nearest = _nearest_integer(v)
    # The device's own floor flushes subnormal numbers to zero: that of −1e−40 would be 0.
    floor = tl.where(nearest > v, nearest - 1.0, nearest)
    drawn = tl.where(_uniform(index, key) < v - floor, floor + 1.0, floor)
    r = tl.where(noise, drawn, nearest)
    # Two comparisons that NaN fails, so that it stays.
    r = tl.where(r > high, high, r)
    r = tl.where(r < low, low, r)
    return tl.where(scale == 0.0, x, r * step)


@triton.jit
def _record(x, here, peak):
    """Keep the largest finite magnitude: as bits, numbers that are not negative are ordered as integers."""
    bits = tl.abs(x).to(tl.int32, bitcast=True)
    bits = tl.where(here & (bits < _INFINITE_BITS), bits, 0)
    tl.atomic_max(peak.to(tl.pointer_type(tl.int32)), tl.max(tl.max(bits, axis=1), axis=0))


@triton.jit
def forward_pass(
    source,
    output,
    mask,
    formats,
    keys,
    drawn,
    peaks,
    numel,
    HALF: tl.constexpr,
    HAS_MASK: tl.constexpr,
    TRAINING: tl.constexpr,
    REPLAY: tl.constexpr,
    GROUPS: tl.constexpr,
    MASKED: tl.constexpr,
):
    """One block of GROUPS·MASKED elements. The pointers to the state are those of the site."""
    group = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    position = group[:, None] * MASKED + tl.arange(0, MASKED)[None, :]
    here = position < numel
    x = tl.load(source + position, mask=here, other=0.0).to(tl.float32)
    scale, step, low, high = _bounds(formats, HALF)
    mode = tl.load(formats + 4)
    if HAS_MASK:
        inside = tl.where(scale == 0.0, here, (x >= low * step) & (x <= high * step))
        saturated = tl.max(tl.where(here & (inside == 0), 1, 0), axis=1)
        tl.store(mask + position, inside.to(tl.uint8), mask=here & (saturated[:, None] != 0))
        tl.store(mask + numel + group, saturated.to(tl.uint8), mask=group * MASKED < numel)
    offset = tl.load(drawn)
    if REPLAY:
        offset -= numel
    noise = mode == _NOISE if TRAINING else mode < 0.0
    y = _rounded(x, position + offset, scale, step, low, high, tl.load(keys), noise)
    tl.store(output + position, y.to(output.dtype.element_ty), mask=here)
    if TRAINING and not REPLAY:
        if mode != _FROZEN:
            _record(x, here, peaks)


@triton.jit
def backward_pass(
    gradient,
    output,
    mask,
    formats,
    keys,
    drawn,
    peaks,
    numel,
    HALF: tl.constexpr,
    HAS_MASK: tl.constexpr,
    ROUND: tl.constexpr,
    GROUPS: tl.constexpr,
    MASKED: tl.constexpr,
):
    """One block of GROUPS·MASKED elements. The pointers to the state are those of the site, if there is one."""
    group = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    position = group[:, None] * MASKED + tl.arange(0, MASKED)[None, :]
    here = position < numel
    g = tl.load(gradient + position, mask=here, other=0.0).to(tl.float32)
    if ROUND:
        scale, step, low, high = _bounds(formats, HALF)
        mode = tl.load(formats + 4)
        if mode != _FROZEN:
            _record(g, here, peaks)
        index = position + tl.load(drawn)
        g = _rounded(g, index, scale, step, low, high, tl.load(keys), mode == _NOISE)
    if HAS_MASK:
        saturated = tl.load(mask + numel + group, mask=group * MASKED < numel, other=0)
        inside = tl.load(mask + position, mask=here & (saturated[:, None] != 0), other=1)
        g = tl.where(inside != 0, g, 0.0)
    tl.store(output + position, g.to(output.dtype.element_ty), mask=here)


@triton.jit
def _move_on(formats, drawn, numel):
    """A launch of its own: all of the programs of the pass must have read where the stream stood."""
    if tl.load(formats + 4) != _FROZEN:
        tl.store(drawn, tl.load(drawn) + numel)


_HALVES = {torch.float32: 0, torch.float16: 16, torch.bfloat16: 19}


def _launch(
    kernel: Any, x: Tensor, output: Tensor, mask: Tensor | None, state: State, site: int, move_on: bool, **constants: Any
) -> None:
    numel = x.numel()
    if not numel:
        return
    at = max(site, 0)
    tables = state.formats[at], state.keys[at:], state.drawn[at:], state.peaks[at:]
    options = {"HALF": _HALVES[output.dtype], "GROUPS": GROUPS, "MASKED": MASKED, **constants}
    on_device: AbstractContextManager[Any] = nullcontext()
    if x.device.type == "cuda":
        on_device = torch.cuda.device(x.device)
    with on_device:
        # A fused multiply-add would round once where the other back ends round twice.
        kernel[triton.cdiv(numel, GROUPS * MASKED),](
            x,
            output,
            output if mask is None else mask,
            *tables,
            numel,
            HAS_MASK=mask is not None,
            **options,
            enable_fp_fusion=False,
        )
        if move_on:
            _move_on[1,](tables[0], tables[2], numel)


def forward(
    source: Tensor, output: Tensor, mask: Tensor | None, state: State, site: int, *, training: bool, replay: bool
) -> bool:
    moves = training and not replay
    _launch(forward_pass, source, output, mask, state, site, moves, TRAINING=training, REPLAY=replay)
    return mask is not None


def backward(gradient: Tensor, output: Tensor, mask: Tensor | None, state: State, site: int) -> None:
    _launch(backward_pass, gradient, output, mask, state, site, site >= 0, ROUND=site >= 0)
