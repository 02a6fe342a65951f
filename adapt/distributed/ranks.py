"""What the processes of a training share, so that all of them decide alike. One process alone keeps what it has."""

from typing import Any

import numpy as np
import torch
from torch import Tensor


def are_several() -> bool:
    """Whether the training runs in a group of processes."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def average_(values: Tensor) -> None:
    """The mean over all processes, in place."""
    if are_several():
        torch.distributed.all_reduce(values)
        values /= torch.distributed.get_world_size()


def maximum_(values: Tensor) -> None:
    """The maximum over all processes, in place."""
    if are_several():
        torch.distributed.all_reduce(values, torch.distributed.ReduceOp.MAX)


def average(number: float) -> float:
    """The mean of a number that lies on the host, over all processes."""
    if not are_several():
        return number
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, number)
    return float(np.mean(gathered))
