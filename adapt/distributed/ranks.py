"""Means and maxima over all processes, so that they decide alike; a single process keeps its values."""

from typing import Any

import numpy as np
import torch
from torch import Tensor


def is_distributed() -> bool:
    """Return whether the training runs in a group of processes."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def average_(values: Tensor) -> None:
    """Replace values by their means over all processes, in place."""
    if is_distributed():
        torch.distributed.all_reduce(values)
        values /= torch.distributed.get_world_size()


def maximum_(values: Tensor) -> None:
    """Replace values by their maxima over all processes, in place."""
    if is_distributed():
        torch.distributed.all_reduce(values, torch.distributed.ReduceOp.MAX)


def average(number: float) -> float:
    """Return the mean of a Python number over all processes."""
    if not is_distributed():
        return number
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, number)
    return float(np.mean(gathered))
