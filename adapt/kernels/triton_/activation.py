"""The passes over activations for CUDA, compiled by Triton. The sites are read on the device.

`adapt.kernels.activation.ActivationKernels` documents the functions. No call waits for the device or passes a number
that changes from step to step, so a CUDA graph may capture them.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from adapt.kernels.activation import MASKED, SiteTables
from adapt.kernels.torch_.activation import renew
from adapt.kernels.triton_.activation_device import advance_stream, backward_pass, forward_pass

__all__ = ["backward", "forward", "renew"]

BLOCK = 8 * MASKED

_HALVES = {torch.float32: 0, torch.float16: 16, torch.bfloat16: 19}


def _launch(
    kernel: Any,
    x: Tensor,
    output: Tensor,
    mask: Tensor | None,
    sites: SiteTables,
    site: int,
    *,
    draws: bool,
    **arguments: Any,
) -> None:
    numel = x.numel()
    if not numel:
        return
    at = max(site, 0)
    tables = sites.formats[at], sites.keys[at:], sites.drawn[at:], sites.peaks[at:]
    on_device: AbstractContextManager[Any] = nullcontext()
    if x.device.type == "cuda":
        on_device = torch.cuda.device(x.device)
    with on_device:
        # No fused multiply-add, which would round once where the other back ends round twice.
        kernel[-(-numel // BLOCK),](
            x,
            output,
            output if mask is None else mask,
            *tables,
            numel,
            HALF=_HALVES[output.dtype],
            HAS_MASK=mask is not None,
            **arguments,
            MASKED=MASKED,
            BLOCK=BLOCK,
            enable_fp_fusion=False,
        )
        if draws:
            advance_stream[1,](tables[0], tables[2], numel)


def forward(
    source: Tensor, output: Tensor, mask: Tensor | None, sites: SiteTables, site: int, *, training: bool, replay: bool
) -> bool:
    places = sites.samples.shape[1]
    sample = {"sample": sites.samples[site], "stride": sites.sample_stride(source.numel()), "SAMPLE": places}
    draws = training and not replay
    _launch(forward_pass, source, output, mask, sites, site, draws=draws, TRAINING=training, REPLAY=replay, **sample)
    return mask is not None


def backward(gradient: Tensor, output: Tensor, mask: Tensor | None, sites: SiteTables, site: int) -> None:
    _launch(backward_pass, gradient, output, mask, sites, site, draws=site >= 0, ROUND=site >= 0)
