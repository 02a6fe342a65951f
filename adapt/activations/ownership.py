"""Detect a gradient that nothing else refers to, so that backward may change it in place."""

import sys
from functools import cache
from typing import Any

import torch
from torch import Tensor

from adapt.torch_internals import memory_references, references


def is_unshared(gradient: Tensor) -> bool:
    """Return whether only the calling `backward`, whose argument this is, can ever see this gradient.

    Hooks, other branches of the network and the caller of `backward()` may refer to it too. Always False on other
    devices than the CPU, where allocating memory is free, so working in place saves nothing.
    """
    if torch.is_grad_enabled() or gradient.device.type != "cpu":
        return False
    return _counts(gradient) == unshared_counts()


@cache
def unshared_counts() -> tuple[int, int, int]:
    """Return the reference counts of an unshared gradient in this version of Python and of torch.

    The first call runs a backward pass, so it must not happen within another one.
    """
    found: list[tuple[int, int, int]] = []
    with torch.enable_grad():
        x = torch.zeros(1, requires_grad=True)
        (_Probe.apply(x, found) * 2).backward()  # type: ignore[no-untyped-call]
    return found[0]


def _counts(gradient: Tensor) -> tuple[int, int, int]:
    """Return the numbers of references to the tensor, to its memory, and to its Python object."""
    return references(gradient), memory_references(gradient), sys.getrefcount(gradient)


class _Probe(torch.autograd.Function):
    """Counts the references to a gradient that nothing else refers to."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, found: list[tuple[int, int, int]]) -> Tensor:
        ctx.found = found
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        ctx.found.append(_counts_through_a_call(gradient))
        return gradient, None


def _counts_through_a_call(gradient: Tensor) -> tuple[int, int, int]:
    """Count through one more call, like `is_unshared`: every call adds a reference."""
    return _counts(gradient)
