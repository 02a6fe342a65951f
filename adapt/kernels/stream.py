"""The random stream that every back end draws from, and the layout that every back end needs.

Element i of a layer draws, in 32-bit unsigned arithmetic, with k0 and k1 the low and the high half of the layer's key:

    x = i ^ k0
    x ^= x >> 16;  x *= FIRST_MULTIPLIER;   x ^= x >> 15
    x ^= k1
    x *= SECOND_MULTIPLIER;  x ^= x >> 16
    u = (x >> 8) · 2^−24                                    in [0, 1), exact in float32

i is the offset of the tensor in its layer plus the position in memory (modulo 2^32), so a draw depends on nothing but
(key, i): not on the order of the work, the number of threads or the device.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

FIRST_MULTIPLIER = 0x7FEB352D
SECOND_MULTIPLIER = 0x846CA68B
UNIFORM_STEP = 2.0**-24


def flat(tensor: Tensor) -> Tensor:
    """The elements of a dense tensor as a vector in memory order, sharing its memory."""
    return tensor.view(-1) if tensor.is_contiguous() else tensor.as_strided((tensor.numel(),), (1,))


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill one piece of memory, in any order of the dimensions, without holes or overlap."""
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted((s, n) for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n != 1):
        if stride != expected:
            return False
        expected *= size
    return True


def require_layout(dtype: torch.dtype | None, /, **lists: Sequence[Tensor | None]) -> None:
    """Check that lists of tensors can be walked side by side, in memory order.

    Args:
        dtype: the element type that all must have; None asks only that they agree.
        lists: by argument name; None entries stand for tensors that are not there. The first list has none.

    Raises:
        ValueError: lists of different length, a tensor with holes, or two that differ in size, strides or device.
        TypeError: an element type that the kernels do not take.
    """
    (first_name, first), *others = lists.items()
    devices = {t.device for t in first if t is not None}
    dtypes = {t.dtype for t in first if t is not None}
    strides = [t.stride() for t in first if t is not None]
    shapes = [t.shape for t in first if t is not None]
    for index, tensor in enumerate(first):
        if tensor is not None and not is_dense(tensor):
            raise ValueError(
                f"{first_name}[{index}] has strides {tensor.stride()} for shape {tuple(tensor.shape)}: "
                "the kernels need dense tensors, pass a contiguous copy"
            )
    for name, tensors in others:
        if len(tensors) != len(first):
            raise ValueError(f"{name} has {len(tensors)} tensors and {first_name} has {len(first)}: pass one for each")
        for index, tensor in enumerate(tensors):
            if tensor is None:
                continue
            if tensor.stride() != strides[index] or tensor.shape != shapes[index]:
                raise ValueError(
                    f"{name}[{index}] has shape {tuple(tensor.shape)} and strides {tensor.stride()}, but "
                    f"{first_name}[{index}] has {tuple(shapes[index])} and {strides[index]}: lay both out alike"
                )
            devices.add(tensor.device)
            dtypes.add(tensor.dtype)
    if len(devices) > 1:
        raise ValueError(f"tensors lie on {sorted(map(str, devices))}: one call takes tensors of one device")
    if len(dtypes) > 1 or (dtype is not None and dtypes - {dtype}):
        wanted = f"{dtype}" if dtype is not None else "one floating point type"
        raise TypeError(f"tensors hold {sorted(map(str, dtypes))}: this back end takes {wanted}")
