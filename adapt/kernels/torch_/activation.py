"""The passes over activations in plain torch operations: slow, on every device, and the reference for the others' bits.

`adapt.kernels.activation.ActivationKernels` documents the functions. The host reads the tables of the sites, which
waits for the device.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapt.kernels.activation import DECAY, FROZEN, MASKED, NOISE, SiteTables
from adapt.kernels.stream import flat
from adapt.kernels.torch_.weights import rounded
from adapt.numerics import HIGHEST_FRACTION, LOWEST_FRACTION


def _begin(sites: SiteTables, site: int, numel: int, *, training: bool, replay: bool) -> tuple[int, int, bool]:
    """Return the key, the stream offset of the first element and whether to draw; advance the site's stream."""
    mode, offset = int(sites.formats[site, 4]), int(sites.drawn[site])
    if replay:
        offset -= numel
    elif training and mode != FROZEN:
        sites.drawn.data[site] += numel
    return int(sites.keys[site]) & 0xFFFFFFFFFFFFFFFF, offset, training and mode == NOISE


def _remember(x: Tensor, sites: SiteTables, site: int) -> None:
    if int(sites.formats[site, 4]) != FROZEN and x.numel():
        magnitude = torch.where(x.isfinite(), x, 0).abs().max()
        sites.peaks.data[site] = torch.maximum(sites.peaks[site], magnitude)


def _keep_sample(x: Tensor, sites: SiteTables, site: int) -> None:
    if int(sites.formats[site, 5]) and x.numel():
        sample = x[:: sites.sample_stride(x.numel())]
        sites.samples.data[site] = 0
        sites.samples.data[site, : len(sample)] = torch.where(sample.isfinite(), sample, 0)


def _grid(sites: SiteTables, site: int, dtype: torch.dtype) -> NDArray[np.float32]:
    """Return the row of a site, with its bounds reduced to what the type can represent."""
    row = sites.formats[site, :4].cpu().numpy().copy()
    scale, step, low, high = row.tolist()
    if scale and dtype != torch.float32:
        information = torch.finfo(dtype)
        ends = math.floor(information.max * scale)
        bound = torch.tensor(min(high, ends) * step, dtype=torch.float32)
        held = bound.to(dtype)
        if held > bound:
            held = torch.nextafter(held, torch.zeros_like(held))
        row[2:] = max(low, -ends), float(held) * scale
    return row


@torch.no_grad()
def forward(
    source: Tensor, output: Tensor, mask: Tensor | None, sites: SiteTables, site: int, *, training: bool, replay: bool
) -> bool:
    x = flat(source).to(torch.float32)
    key, offset, noise = _begin(sites, site, x.numel(), training=training, replay=replay)
    row = _grid(sites, site, output.dtype)
    scale, step, low, high = row.tolist()
    inside = (x >= low * step) & (x <= high * step) if scale else torch.ones_like(x, dtype=torch.bool)
    if training and not replay:
        _remember(x, sites, site)
        _keep_sample(x, sites, site)
    flat(output).copy_(rounded(x, row, key, offset, noise))
    if mask is None:
        return False
    mask[: x.numel()] = inside
    mask[x.numel() :] = 1
    return True


@torch.no_grad()
def backward(gradient: Tensor, output: Tensor, mask: Tensor | None, sites: SiteTables, site: int) -> None:
    g = flat(gradient).to(torch.float32)
    if site >= 0:
        key, offset, noise = _begin(sites, site, g.numel(), training=True, replay=False)
        _remember(g, sites, site)
        g = rounded(g, _grid(sites, site, output.dtype), key, offset, noise)
    if mask is not None:
        g = torch.where(mask[: g.numel()].view(torch.bool) | _unflagged(mask, g.numel()), g, 0)
    flat(output).copy_(g)


def _unflagged(mask: Tensor, numel: int) -> Tensor:
    """Return which elements have the flag 0."""
    return (mask[numel:] == 0).repeat_interleave(MASKED)[:numel]


@torch.no_grad()
def renew(
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
    # Through .data: a compiled program may save the tables for its backward pass, which must not find a newer version.
    sites.keys.data.copy_(torch.from_numpy(keys.view(np.int64)))
    if ended:
        sites.drawn.data.zero_()
        moved = torch.maximum(sites.peaks, ranges * DECAY)
        ranges.copy_(torch.where(sites.peaks > 0, moved, ranges))
        sites.peaks.data.zero_()
    mantissa, exponent = torch.frexp(ranges)
    beyond = mantissa > 1 - _power_of_two(-words)
    fraction = words - 1 - exponent - beyond.int()
    fraction = torch.maximum(fraction, (words - 128).clamp_(min=LOWEST_FRACTION))
    fraction = (fraction + shifts).clamp_(max=HIGHEST_FRACTION)
    half, unit = _power_of_two(words - 1), _power_of_two((words - 25).clamp_(min=0))
    rows = torch.stack([_power_of_two(fraction), _power_of_two(-fraction), -half, half - unit], dim=1)
    sites.formats.data[:, :4] = torch.where(((words > 0) & (ranges > 0))[:, None], rows, otherwise)
    sites.formats.data[:, 4] = mode
    sites.formats.data[:, 5] = (words > 0) * float(sampled and mode != FROZEN)


def _power_of_two(exponent: Tensor) -> Tensor:
    """2^exponent for int32 from −126 to 127, built from bits, because library functions may be inexact."""
    return ((exponent + 127) << 23).view(torch.float32)
