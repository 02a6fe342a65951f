"""Rounding to a fixed-point grid, nearest and stochastic: the only place where a format becomes arithmetic."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapt import arguments, torch_internals
from adapt.kernels import Rounding, backend, set_backend
from adapt.kernels.stream import is_dense
from adapt.kernels.torch_ import weights as torch_
from adapt.numerics import ChannelPrecision, FixedPoint, Format, Precision, largest_held

__all__ = ["Noise", "backend", "grid", "quantize", "set_backend", "stream_keys"]

_WORKING_TYPE = {
    torch.float32: torch.float32,
    torch.float64: torch.float64,
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
}
_NO_OFFSET = np.zeros(1, np.int64)


def quantize(
    x: Tensor, precision: Precision, *, rounding: str = "nearest", generator: torch.Generator | None = None
) -> Tensor:
    """Round `x` to the grid of `precision`, to nearest or stochastically: AdaPT 3.1.

    Nearest rounds half to even. Stochastic rounds x/step up with its fraction as the probability, otherwise down: the
    mean is exact, and a value on the grid never moves. Both saturate at the ends of the range, also ±Inf, and keep NaN.
    The result carries no gradient.

    A floating-point type with p bits of significand represents every value of the grid up to WL = p + 1 (25 for
    float32, 12 for float16, 9 for bfloat16). Longer words are simulated: every result is still a grid value within the
    range, but only values that the type can represent occur, and the largest of them replaces the format's maximum.
    The probability of rounding up is a multiple of 2^−24.

    Args:
        x: float32, float64, float16 or bfloat16, any shape, strides and device. float64 is rounded in float64, the
            16-bit types in float32.
        precision: the format.
        rounding: "nearest" or "stochastic".
        generator: provides the key for stochastic rounding, in a single draw; torch's default CPU generator if None.

    Returns:
        A new tensor of the shape, type, device and memory format of `x`. The i-th element in memory uses element i of
        the random stream.

    Raises:
        TypeError: `x`, `precision` or `generator` has the wrong type.
        ValueError: the rounding is unknown.
    """
    if not isinstance(x, Tensor) or x.dtype not in _WORKING_TYPE:
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x must be a float32, float64, float16 or bfloat16 tensor, got {kind}")
    arguments.precision("precision", precision)
    arguments.check_option("rounding", rounding, ("nearest", "stochastic"))
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator or None, got {generator!r}")

    halves = None
    if rounding == "stochastic":
        device = "cpu" if generator is None else generator.device
        halves = torch.randint(0, 2**32, (2,), generator=generator, device=device)
    operands = x.detach(), precision.word_length, precision.fraction_length, halves
    opaque = torch.compiler.is_compiling() or torch_internals.is_transformed(x)
    return torch.ops.adapt.quantize(*operands) if opaque else _quantize(*operands)


def nearest(x: Tensor, form: FixedPoint) -> Tensor:
    """Round to nearest; the channels of a `ChannelPrecision` lie along dimension 0 of x."""
    return Format.of(form).quantize(x) if isinstance(form, ChannelPrecision) else quantize(x, form)


def _quantize(x: Tensor, word_length: int, fraction_length: int, halves: Tensor | None) -> Tensor:
    """Round to ⟨word_length, fraction_length⟩, stochastically if the two halves [2] of a key are given."""
    # A tensor may be marked as negated instead of negated in memory, such as the imaginary part of a conjugate.
    source = x.resolve_neg().to(_WORKING_TYPE[x.dtype])
    output = torch.empty_like(source)
    if output.stride() != source.stride() or not is_dense(source):
        source = output.copy_(source)
    low, high = (0, 0) if halves is None else halves.tolist()
    key = np.array([low | high << 32], np.uint64)
    row = grid(Precision(word_length, fraction_length), x.dtype)[None]
    kernels = backend(x.device) if source.dtype == torch.float32 else torch_
    kernels.quantize_([source], [output], Rounding(row, key, _NO_OFFSET, stochastic=halves is not None))
    return output.to(x.dtype)


# torch.compile and torch.func cannot trace the kernels, so for them rounding is this operator.
@torch.library.custom_op("adapt::quantize", mutates_args=())
def _operator(x: Tensor, word_length: int, fraction_length: int, halves: Tensor | None) -> Tensor:
    return _quantize(x, word_length, fraction_length, halves)


@_operator.register_fake
def _(x: Tensor, word_length: int, fraction_length: int, halves: Tensor | None) -> Tensor:
    return torch.empty_like(x)


@_operator.register_vmap
def _(info: Any, in_dims: tuple[Any, ...], x: Tensor, *rest: Any) -> tuple[Tensor, int | None]:
    # Rounding is elementwise, so the batch dimension stays where it is.
    return torch.ops.adapt.quantize(x, *rest), in_dims[0]


@lru_cache(maxsize=4096)
def grid(precision: Precision | None, dtype: torch.dtype = torch.float32) -> NDArray[np.floating]:
    """Return the row (2^FL, 2^−FL, low, high) with which the kernels round to `precision`; it is read-only.

    low and high are the ends of the range in steps, reduced to what `dtype` represents exactly: high is its largest
    value not above 2^(WL−1) − 1 for which high·2^−FL is finite. The row is float64 for float64, otherwise float32.
    None stands for float32: a row of zeros, which leaves values as they are.

    Raises:
        TypeError: `dtype` is not one of the four floating-point types.
    """
    if dtype not in _WORKING_TYPE:
        raise TypeError(f"dtype must be float32, float64, float16 or bfloat16, got {dtype}")
    row: NDArray[np.floating] = np.zeros(4, np.float64 if dtype == torch.float64 else np.float32)
    if precision is not None:
        low = -largest_held(2 ** (precision.word_length - 1), precision.fraction_length, dtype)
        high = largest_held(2 ** (precision.word_length - 1) - 1, precision.fraction_length, dtype)
        row[:] = 2.0**precision.fraction_length, precision.step, low, high
    row.flags.writeable = False
    return row


@dataclass
class Noise:
    """How a run rounds in training: whether stochastically, and the seed of its random stream.

    All parts of a run that round share this object, so loading another run's state changes it in one place.
    """

    seed: int = 0
    stochastic: bool = False


def stream_keys(seed: int, step: int, names: Sequence[str]) -> NDArray[np.uint64]:
    """Return one key of the random stream per layer, uint64 [len(names)], for one optimizer step.

    A layer's key depends only on its name, the seed and the step: adding or freezing a layer does not change the noise
    of others.
    """
    keys: NDArray[np.uint64] = _keys_of_block(seed, step // _BLOCK, tuple(names))[step % _BLOCK]
    return keys.copy()


_BLOCK = 64
"""Steps whose keys are computed at once, which takes hardly longer than for a single step."""


@lru_cache(maxsize=64)
def _keys_of_block(seed: int, block: int, names: tuple[str, ...]) -> NDArray[np.uint64]:
    """Return the keys of all steps of a block, [_BLOCK, len(names)]."""
    steps = np.uint64(block * _BLOCK % 2**64) + np.arange(_BLOCK, dtype=np.uint64)
    z: NDArray[np.uint64] = _base_keys(seed, names) + steps[:, None] * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@lru_cache(maxsize=64)
def _base_keys(seed: int, names: tuple[str, ...]) -> NDArray[np.uint64]:
    digests = b"".join(blake2b(f"{seed}:{name}".encode(), digest_size=8).digest() for name in names)
    return np.frombuffer(digests, "<u8")
