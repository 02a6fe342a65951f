"""The passes over channelwise weights in plain torch operations: for every device, and the reference.

`adapt.kernels.channels.ChannelKernels` documents them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from adapt.kernels.channels import Layout
from adapt.kernels.learned_steps import SCALINGS, Row, partials, rounded
from adapt.kernels.stream import OptionalTensors, Tensors, flat, require_layout


def _split(tensor: Tensor, layout: Layout) -> Tensor:
    """Return a view of the elements in memory order; dimensions 1 and 3 are groups and channels, outer one first."""
    outer, inner = sorted(((layout.group_stride, layout.groups), (layout.stride, layout.size)), reverse=True)
    between = outer[0] // (inner[0] * inner[1])
    return flat(tensor).view(-1, outer[1], between, inner[1], inner[0])


def _broadcast(table: Tensor, layout: Layout) -> Tensor:
    """Return the columns of the layout's rows, each in a shape that broadcasts with `_split`."""
    columns: Tensor = table[layout.first : layout.first + layout.channels].t()
    columns = columns.reshape(-1, layout.groups, layout.size)
    if layout.stride > layout.group_stride:
        columns = columns.transpose(1, 2)
    return columns[:, None, :, None, :, None]


@torch.no_grad()
def quantize_(sources: Tensors, outputs: Tensors, rows: Tensor, layouts: Sequence[Layout]) -> None:
    require_layout(torch.float32, sources=sources, outputs=outputs)
    for source, output, layout in zip(sources, outputs, layouts, strict=True):
        if source.numel():
            _split(output, layout).copy_(rounded(_split(source, layout), Row(*_broadcast(rows, layout))))


@torch.no_grad()
def back_(
    gradients: OptionalTensors,
    masters: Tensors,
    squared: Tensor,
    rows: Tensor,
    layouts: Sequence[Layout],
    sums: Tensor | None,
    *,
    scaling: int,
    delta: float,
) -> None:
    require_layout(torch.float32, masters=masters, gradients=gradients)
    for gradient, master, norm, layout in zip(gradients, masters, squared, layouts, strict=True):
        if gradient is None or not gradient.numel():
            continue
        # Not multiplied by zero, which would keep NaN.
        g = torch.where(norm.isfinite(), _split(gradient, layout), 0)
        back = partials(g, _split(master, layout), Row(*_broadcast(rows, layout)), SCALINGS[scaling], delta)
        if sums is not None:
            figures = back.step, back.above, back.below, g.square()
            parts = torch.stack([figure.sum((0, 2, 4), dtype=torch.float64) for figure in figures], dim=-1)
            if layout.stride > layout.group_stride:
                parts = parts.transpose(0, 1)
            sums[layout.first : layout.first + layout.channels] += parts.flatten(0, 1)
        _split(gradient, layout).copy_(back.values)
