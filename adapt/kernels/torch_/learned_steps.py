"""The passes of quantisers with a learned step in plain torch operations: for every device, and the reference.

`adapt.kernels.learned_steps` documents them.
"""

import torch
from torch import Tensor

from adapt.kernels.learned_steps import SCALINGS, Row, partials, rounded


@torch.no_grad()
def forward(source: Tensor, output: Tensor, rows: Tensor, site: int) -> None:
    output.copy_(rounded(source.to(torch.float32), Row(*rows[site])))


@torch.no_grad()
def backward(
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
    g = gradient.to(torch.float32)
    back = partials(g, source.to(torch.float32), Row(*rows[site]), SCALINGS[scaling], delta)
    figures = (back.step, back.above, back.below, g.square())
    # Through .data: a compiled program saves the sums for its backward pass, which must not find a newer version.
    sums.data[site] += torch.stack([figure.sum(dtype=torch.float64) for figure in figures])
    output.copy_(back.values)
