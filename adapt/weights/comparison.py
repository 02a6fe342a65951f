"""Compare what parameters hold with what they should hold, to find what other code has written into them."""

import torch
from torch import Tensor

from adapt.distributed.sharding import full, unequal

SAMPLE = 4096
"""How many elements of a parameter are compared with what it should hold, where a sample has to do."""


def differ(found: Tensor, shown: Tensor) -> Tensor:
    """Return whether two tensors differ anywhere, except where the found one is NaN, bool []."""
    return (unequal(found, shown) & (found == found)).any()


def are_replaced(found: Tensor, shown: Tensor) -> bool:
    """Return whether other code initialised, loaded or copied these values as a whole; waits for the device.

    At least half of the found values that are not zero are new, and any is. So a clamp of the outermost values replaces
    nothing, nor does a pruning mask.
    """
    new, filled = unequal(found, shown), found != 0
    counts = [float(full(values.sum())) for values in (new, new & filled, filled)]
    return counts[0] > 0 and 2 * counts[1] >= counts[2]


def attributed(found: Tensor, weight: Tensor, shown: Tensor, weight_before: Tensor, shown_before: Tensor) -> Tensor:
    """Return the master of a parameter that holds what other code wrote, element by element.

    It is W where the parameter still shows W, the W of before where it shows that again, and else the found value.

    Args:
        found: what the parameter holds.
        weight, shown: W, and what the parameter should hold.
        weight_before, shown_before: both before the first write since the latest step; the same if there was none.
    """
    is_before, is_now = found == shown_before, found == shown
    # Values may lie on both grids by chance: the one that explains more of them comes first.
    restored = torch.where(is_before, weight_before, torch.where(is_now, weight, found))
    changed = torch.where(is_now, weight, torch.where(is_before, weight_before, found))
    return torch.where(is_before.sum() > is_now.sum(), restored, changed)
