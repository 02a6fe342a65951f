"""Rounding weights whose output channels have their own fraction lengths, with the kernels for whole tensors.

With the smallest fraction length FL of a layer and the shift s_c = FL_c − FL of a channel,

    Q_c(w) = 2^−s_c · Q(2^s_c · w),    Q rounding to ⟨WL, FL⟩.

Powers of two are exact, and Q draws the same random numbers as for a layer without channels. So a layer whose channels
all have one fraction length is rounded to the same bits as in a single `Precision`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from adapt.distributed.sharding import local, sharded_like
from adapt.kernels import Kernels, Rounding
from adapt.layers.channels import Channels
from adapt.numerics import ChannelPrecision
from adapt.torch_internals import foreach_multiply


class Shift(NamedTuple):
    """2^s_c and 2^−s_c of a layer, in a shape that broadcasts with the piece of its weight in this process."""

    up: Tensor
    down: Tensor


def shift(form: ChannelPrecision, channels: Channels, weight: Tensor) -> Shift:
    """Return the shifts of a weight's channels."""
    bits = torch.tensor(form.fraction_lengths, dtype=torch.float32, device=weight.device) - form.fraction_length
    spread = channels.spread(bits, weight)
    if len(spread) == len(weight):
        spread = local(sharded_like(spread, weight))
    return Shift(spread.exp2(), (-spread).exp2())


@torch.no_grad()
def round_by_channel(
    run: Callable[[Rounding, Tensor | None], None],
    outputs: Sequence[Tensor],
    how: Rounding,
    shifts: Sequence[Shift | None],
    kernels: Kernels,
    figures: Tensor | None = None,
) -> None:
    """Run a pass that rounds into `outputs`, so that layers with shifts are rounded by channel.

    The pass leaves these layers in float32, and a second one rounds them.

    Args:
        run: the pass, given how to round and the figures to measure.
        outputs: the tensors that the pass writes.
        how: how it should round; the grids of layers with shifts are those of ⟨WL, FL⟩.
        shifts: the shift of each output; None for one without channels.
        kernels: the kernels.
        figures: those of all outputs, as of `Kernels.quantize_`; None if they are not measured.
    """
    chosen = [i for i, one in enumerate(shifts) if one is not None]
    if not chosen:
        run(how, figures)
        return
    grids = how.grids.copy()
    grids[chosen] = 0
    run(how._replace(grids=grids), figures)
    parts, up, down = [outputs[i] for i in chosen], *zip(*(one for one in shifts if one is not None), strict=True)
    pieces = [local(part) for part in parts]
    rounding = Rounding(how.grids[chosen], how.keys[chosen], how.offsets[chosen], how.stochastic)
    measured = None if figures is None else torch.empty_like(figures[chosen])
    foreach_multiply(pieces, up)
    kernels.quantize_(parts, parts, rounding, measured)
    foreach_multiply(pieces, down)
    if figures is not None and measured is not None:
        figures[chosen, 0] = measured[:, 0]
