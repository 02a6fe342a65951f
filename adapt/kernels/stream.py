"""The random stream from which every back end draws, and the memory layout that every back end requires.

Element i of a layer draws u, in 32-bit unsigned arithmetic, with k0 and k1 the low and the high half of the layer's
key:

    x = i ^ k0
    x ^= x >> 16;  x *= FIRST_MULTIPLIER;   x ^= x >> 15
    x ^= k1
    x *= SECOND_MULTIPLIER;  x ^= x >> 16
    u = (x >> 8) · 2^−24                                    in [0, 1), exact in float32

i is the offset of the tensor in its layer plus the position in memory (modulo 2^32). A draw depends only on (key, i),
not on the order of the work, the number of threads or the device.
"""

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

FIRST_MULTIPLIER = 0x7FEB352D
SECOND_MULTIPLIER = 0x846CA68B
UNIFORM_STEP = 2.0**-24

Tensors = Sequence[Tensor]
OptionalTensors = Sequence[Tensor | None]
"""Tensors, one for each layer; None where there is none."""


def flat(tensor: Tensor) -> Tensor:
    """Return the elements of a dense tensor as a vector in memory order, sharing its memory."""
    return tensor.view(-1) if tensor.is_contiguous() else tensor.as_strided((tensor.numel(),), (1,))


def is_dense(tensor: Tensor) -> bool:
    """Return whether the elements fill one block of memory, in any order of the dimensions, without gaps or overlap."""
    # For the two usual orders, torch's checks are ten times as fast as the loop over the strides.
    if tensor.is_contiguous() or (tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)):
        return True
    expected = 1
    for stride, size in sorted(_relevant_strides(tensor)):
        if stride != expected:
            return False
        expected *= size
    return True


def _relevant_strides(tensor: Tensor) -> list[tuple[int, int]]:
    """Return (stride, size) of the dimensions longer than 1; the strides of the others are arbitrary."""
    return [(stride, size) for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size != 1]


def require_layout(dtype: torch.dtype | None, /, **lists: OptionalTensors) -> tuple[int, ...]:
    """Check that lists of tensors can be traversed together, in memory order.

    Args:
        dtype: the element type that all must have; None requires only that they agree.
        lists: by argument name. The first list is complete; in the others None stands for a missing tensor.

    Returns:
        The number of elements of each tensor in the first list.

    Raises:
        ValueError: lists have different lengths, a tensor has gaps, or two tensors differ in size, strides or device.
        TypeError: the kernels do not accept an element type.
    """
    (name, reference), *others = lists.items()
    first = cast(Tensors, reference)
    sizes, strides = tuple(map(Tensor.numel, first)), list(map(Tensor.stride, first))
    if not all(map(Tensor.is_contiguous, first)):
        for index, leader in enumerate(first):
            if not is_dense(leader):
                raise ValueError(f"{name}[{index}] is not dense ({_layout(leader)}): pass a contiguous copy")
    present = list(first)
    for other_name, tensors in others:
        if len(tensors) != len(first):
            raise ValueError(f"{other_name} has {len(tensors)} tensors and {name} has {len(first)}: pass one for each")
        there = [tensor for tensor in tensors if tensor is not None]
        present += there
        # A tensor with the number of elements and the strides of a dense one also has its shape. Comparing whole lists
        # handles the usual case at a quarter of the loop's cost.
        if tuple(map(Tensor.numel, there)) == sizes and list(map(Tensor.stride, there)) == strides:
            continue
        for index, (tensor, leader) in enumerate(zip(tensors, first, strict=True)):
            if tensor is not None and (
                tensor.numel() != sizes[index] or _relevant_strides(tensor) != _relevant_strides(leader)
            ):
                raise ValueError(
                    f"{other_name}[{index}] ({_layout(tensor)}) does not match {name}[{index}] ({_layout(leader)}): "
                    "lay both out alike in memory"
                )
    devices, dtypes = {t.device for t in present}, {t.dtype for t in present}
    if len(devices) > 1:
        raise ValueError(f"tensors lie on {sorted(map(str, devices))}: one call takes tensors of one device")
    if len(dtypes) > 1 or (dtype is not None and dtypes - {dtype}):
        raise TypeError(f"tensors hold {sorted(map(str, dtypes))}: this back end takes {dtype or 'one type at a time'}")
    return sizes


def present(*lists: OptionalTensors) -> Tensors:
    """Merge lists that may lack tensors: return, for every index, the first tensor found there, or an empty one."""
    for tensors in lists:
        if all(tensor is not None for tensor in tensors):
            return cast(Tensors, tensors)
    found = [next((tensor for tensor in tensors if tensor is not None), None) for tensors in zip(*lists, strict=True)]
    device = next((tensor.device for tensor in found if tensor is not None), None)
    return [torch.empty(0, device=device) if tensor is None else tensor for tensor in found]


def set_missing(tensors: OptionalTensors, norms: Tensor) -> None:
    """norms[i] ← NaN for missing tensors."""
    missing = [i for i, tensor in enumerate(tensors) if tensor is None]
    if missing:
        norms[missing] = math.nan


def _layout(tensor: Tensor) -> str:
    return f"shape {tuple(tensor.shape)}, strides {tensor.stride()}"
