"""Project learned widths to widths within the budgets."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from adapt.learned.budget import LONGEST, Load, project
from adapt.learned.calibration import best_range
from adapt.learned.format_table import FormatTable
from adapt.learned.masters import LearnedMasters
from adapt.learned.quantizer import limit

SHRINKAGE = 0.85
"""Factor on an activation's range for each bit that is taken: about the ratio by which the best range of a normal
variable shrinks from b to b − 1 bits, 2 ≤ b ≤ 6."""


@torch.no_grad()
def fit_to_budgets(
    formats: FormatTable, layers: LearnedMasters, energy: Tensor, loads: Sequence[Load], targets: Sequence[float]
) -> dict[str, float]:
    """Bring the sizes to their budgets (see `adapt.learned.budget.project`), and return by how much they missed them.

    A format whose width changes gets a new step. The new range of a weight channel is the one of least squared error
    (see `adapt.learned.calibration.best_range`); that of an activation shrinks by `SHRINKAGE` for each bit taken.

    Args:
        formats: the formats.
        layers: the masters of the weights.
        energy: Σg² of each format, float64 [F].
        loads: sizes of the weights' formats, and of the activations'.
        targets: their budgets in kB; infinite if there is none.
    """
    before, first = formats.bits.copy(), formats.weights
    losses = (energy * formats.step.double().square()).cpu().numpy()
    bits, missed = before.copy(), {}
    for load, target, part in zip(loads, targets, (slice(0, first), slice(first, None)), strict=True):
        if np.isfinite(target):
            missed[f"{load.what}_budget"] = target
            missed[f"{load.what}_missed_by"] = load.size(before[part]) / target - 1
            most = np.minimum(formats.highest[part], LONGEST)
            bits[part] = project(load, before[part], losses[part], target, floor=formats.lowest[part], ceiling=most)
    chosen = bits != before
    maximum = formats.maximum * torch.from_numpy(SHRINKAGE ** np.maximum(before - bits, 0)).to(formats.maximum)
    top = limit(torch.from_numpy(bits), True).to(formats.device)
    # The level of one signed bit lies amid the values, so it says nothing about their extent.
    reach = torch.where(torch.from_numpy(before == 1).to(formats.device), torch.inf, formats.maximum)
    for i, name in enumerate(layers.names):
        place = formats.places[name]
        if chosen[place].any():
            maximum[place] = best_range(layers.rows(i), reach[place], top[place])
    formats.set_widths(bits, chosen, maximum)
    return missed
