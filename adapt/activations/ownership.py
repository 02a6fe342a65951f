"""Whether a gradient is nobody else's, so that a backward pass may change it in place."""

import sys
from functools import cache
from typing import Any

import torch
from torch import Tensor


def is_alone(gradient: Tensor) -> bool:
    """Whether nobody but the `backward` of an autograd function that asks, called with it, can ever see this gradient.

    Hooks, other branches of the network or the caller of `backward()` may hold it too. It lies on the CPU: elsewhere
    new memory costs nothing.
    """
    if torch.is_grad_enabled() or gradient.device.type != "cpu":
        return False
    return _holders(gradient) == holders_of_one_alone()


@cache
def holders_of_one_alone() -> tuple[int, int, int]:
    """What is counted of a gradient that nobody else holds, in this version of Python and of torch.

    It takes a backward pass of its own, so the first call does not belong into another one.
    """
    counted: list[tuple[int, int, int]] = []
    with torch.enable_grad():
        x = torch.zeros(1, requires_grad=True)
        (_Probe.apply(x, counted) * 2).backward()  # type: ignore[no-untyped-call]
    return counted[0]


def _holders(gradient: Tensor) -> tuple[int, int, int]:
    """References to the tensor, to its memory, and to its Python object."""
    memory = torch._C._storage_Use_Count(gradient.untyped_storage()._cdata)
    return gradient._use_count(), memory, sys.getrefcount(gradient)  # type: ignore[attr-defined]


class _Probe(torch.autograd.Function):
    """Counts who holds a gradient that has just been made for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, counted: list[tuple[int, int, int]]) -> Tensor:
        ctx.counted = counted
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        ctx.counted.append(_asked(gradient))
        return gradient, None


def _asked(gradient: Tensor) -> tuple[int, int, int]:
    """As deep in calls as `is_alone`."""
    return _holders(gradient)
