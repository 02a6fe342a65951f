"""`Format`: the common description of every tensor's number format, as integer words times a step."""

from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapt.numerics.channel_precision import ChannelPrecision, FixedPoint
from adapt.numerics.fixed_point import Precision, largest_held

_WORKING = {torch.float64: torch.float64}
"""The type in which values of another type are rounded: float32 unless listed here."""


@dataclass(frozen=True, eq=False)
class Format:
    """The values that a tensor can take: its integer words from `low` to `high`, times a step.

    Each attribute has one number for the whole tensor, or one for each channel along `axis`. Fixed point and block
    floating point have steps 2^−FL; a learned step may be any positive float32 number. One signed bit is the word −1 or
    1, never 0.

    Attributes:
        word_length: bits of a word including the sign; int64, [] or [channels].
        step: distance between neighbouring values, float64, [] or [channels]; float32 represents it exactly. With one
            signed bit, the magnitude of the two values.
        signed: whether negative words exist; bool, [] or [channels].
        low, high: the smallest and the largest word; int64, [] or [channels].
        axis: the dimension along which the channels lie; None if there is one format for the whole tensor.
        groups: the number of blocks into which the first dimension is split before channels are counted along `axis`;
            above 1 only for a transposed convolution with groups, whose channels are numbered group by group.
    """

    word_length: NDArray[np.int64]
    step: NDArray[np.float64]
    signed: NDArray[np.bool_]
    low: NDArray[np.int64]
    high: NDArray[np.int64]
    axis: int | None = None
    groups: int = 1

    def __post_init__(self) -> None:
        for name, dtype in (
            ("word_length", np.int64),
            ("step", np.float64),
            ("signed", np.bool_),
            ("low", np.int64),
            ("high", np.int64),
        ):
            value = np.array(getattr(self, name), dtype)
            value.flags.writeable = False
            object.__setattr__(self, name, value)
        expected = () if self.axis is None else (self.word_length.size,)
        shapes = {field.name: np.shape(getattr(self, field.name)) for field in fields(self)[:5]}
        if any(shape != expected for shape in shapes.values()):
            raise ValueError(f"a format needs one number of each kind, or one per channel along its axis, got {shapes}")
        if not ((self.word_length >= 1) & (self.word_length <= 32)).all():
            raise ValueError(f"word_length must lie between 1 and 32 bits, got {self.word_length}")
        if not ((self.step > 0) & (self.step < np.inf) & (self.step.astype(np.float32) == self.step)).all():
            raise ValueError(f"step must be a positive float32 number, got {self.step}")
        bits = self.word_length - self.signed
        if not ((self.low <= 0) & (self.low >= np.where(self.signed, -(2**bits), 0))).all():
            raise ValueError(f"low must be a word of {self.word_length} bits and at most 0, got {self.low}")
        if not ((self.high >= 0) & (self.high <= np.where(bits > 0, 2**bits - 1, 1))).all():
            raise ValueError(f"high must be a word of {self.word_length} bits and at least 0, got {self.high}")

    @classmethod
    def of(cls, precision: FixedPoint, axis: int = 0, groups: int = 1) -> Self:
        """Return the `Format` of a tensor in fixed point; the channels of a `ChannelPrecision` lie along `axis`."""
        if has_channels := isinstance(precision, ChannelPrecision):
            fractions = np.array(precision.fraction_lengths, np.float64)
        else:
            fractions = np.array(precision.fraction_length, np.float64)
        half = np.full(fractions.shape, 2 ** (precision.word_length - 1))
        return cls(
            word_length=np.full(fractions.shape, precision.word_length),
            step=np.exp2(-fractions),
            signed=np.full(fractions.shape, True),
            low=-half,
            high=half - 1,
            axis=axis if has_channels else None,
            groups=groups if has_channels else 1,
        )

    @property
    def minimum(self) -> NDArray[np.float64]:
        """Smallest value, low·step; float64, [] or [channels]."""
        return np.asarray(self.low * self.step)

    @property
    def maximum(self) -> NDArray[np.float64]:
        """Largest value, high·step; float64, [] or [channels]."""
        return np.asarray(self.high * self.step)

    @property
    def fraction_length(self) -> NDArray[np.int64] | None:
        """FL = −log₂ step, int64, [] or [channels]; None if a step is not a power of two."""
        mantissa, exponent = np.frexp(self.step)
        return np.asarray(1 - exponent, np.int64) if (mantissa == 0.5).all() else None

    @property
    def precision(self) -> FixedPoint:
        """The fixed-point format with the same values: the inverse of `of`.

        Raises:
            ValueError: there is none, because a step is not a power of two, channels have different word lengths, there
                is no sign, or a range is not that of the whole word.
        """
        words, fractions = np.unique(self.word_length), self.fraction_length
        if words.size > 1:
            raise ValueError(f"its channels have words of {words[0]} to {words[-1]} bits, but a layer has one length")
        if fractions is None:
            steps = f"step {self.step} is not a power" if self.axis is None else "channels' steps are not all powers"
            raise ValueError(f"its {steps} of two, unlike those of ⟨WL, FL⟩")
        word, lengths = int(words[0]), fractions.tolist()
        found = Precision(word, lengths) if self.axis is None else ChannelPrecision(word, tuple(lengths))
        whole = Format.of(found, self.axis or 0, self.groups)
        if whole != self:
            kind = "signed" if self.signed.all() else "unsigned"
            raise ValueError(
                f"its {kind} words go from {self.low} to {self.high}, but those of {found} from {whole.low} to "
                f"{whole.high}"
            )
        return found

    def integers(self, x: Any) -> Any:
        """Return the words nearest to x, half to even, saturated at the ends of the range; int32 in the shape of x.

        Args:
            x: a floating-point tensor, or anything that NumPy converts to an array; the result is a tensor or an array.

        Raises:
            ValueError: x holds NaN, which no word represents, or does not have the channels of this format.
        """
        values = _tensor(x)
        if bool(values.isnan().any()):
            raise ValueError("x holds NaN, which no word represents: quantize(x) keeps NaN")
        return _like(self._integers(values), x)

    def values(self, integers: Any) -> Any:
        """Return the values of words, word·step, as float32 in the shape of the words.

        Args:
            integers: words of this format, a tensor or anything that NumPy converts to an array; the result is a tensor
                or an array.

        Raises:
            ValueError: the words do not have the channels of this format.
        """
        return _like(self._values(_tensor(integers), torch.float32), integers)

    def quantize(self, x: Any) -> Any:
        """Return the values nearest to x, half to even, saturated at the ends of the range; NaN stays NaN.

        `values(integers(x))` gives the same bits, and so does evaluation of a layer in this format.

        Args:
            x: a floating-point tensor, or anything that NumPy converts to an array; the result is a tensor or an array
                of the same type.

        Raises:
            ValueError: x does not have the channels of this format.
        """
        values = _tensor(x)
        words = self._integers(values.nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf))
        result = self._values(words, _WORKING.get(values.dtype, torch.float32)).to(values.dtype)
        return _like(torch.where(values.isnan(), values, result), x)

    def _integers(self, x: Tensor) -> Tensor:
        dtype = _WORKING.get(x.dtype, torch.float32)
        split, shape = self._view(x)
        # One signed bit has the levels ±½ of twice its step.
        sign = self.signed & (self.word_length == 1)
        steps = np.where(sign, 2 * self.step, self.step)
        inverse = _numbers(steps, x.device, dtype).reciprocal().view(shape)
        scaled = split.to(dtype) * inverse
        words = torch.round(scaled)
        if sign.any():
            offset = torch.full_like(inverse, 0.5)
            levels = 2 * torch.round(scaled.clamp(-0.5, 0.5) - offset) + 1
            words = torch.where(_numbers(sign, x.device).view(shape), levels, words)
        low, high = (_numbers(ends, x.device, torch.float64).view(shape) for ends in self._held(dtype))
        return words.double().clamp(low, high).to(torch.int32).reshape(x.shape)

    def _values(self, words: Tensor, dtype: torch.dtype) -> Tensor:
        split, shape = self._view(words)
        step = _numbers(self.step, words.device).view(shape)
        # The product of a word and a float32 number is exact in float64 up to 29 bits; rounding it once gives the same
        # as float32 arithmetic does for shorter words.
        return (split.double() * step).to(dtype).reshape(words.shape)

    def _held(self, dtype: torch.dtype) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the ends of the range in words, reduced to what `dtype` can represent."""
        fractions = self.fraction_length
        if fractions is None or ((self.word_length <= 24).all() and (np.abs(fractions) < 100).all()):
            return self.low, self.high
        pairs = np.broadcast(self.low, self.high, fractions)
        held = [[-largest_held(-int(a), int(f), dtype), largest_held(int(b), int(f), dtype)] for a, b, f in pairs]
        low, high = np.array(held, np.int64).T
        return low.reshape(self.low.shape), high.reshape(self.high.shape)

    def _view(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """Return x with its first dimension split into groups, and the shape in which channels broadcast with it."""
        if self.axis is None:
            return x, ()
        split = x.unflatten(0, (self.groups, -1)) if self.groups > 1 else x  # type: ignore[no-untyped-call]
        axis = self.axis + (self.groups > 1)
        shape = [1] * split.ndim
        if axis < split.ndim:
            shape[axis] = split.shape[axis]
        if self.groups > 1:
            shape[0] = self.groups
        if np.prod(shape) != self.word_length.size or axis >= split.ndim:
            raise ValueError(
                f"x must have {self.word_length.size // self.groups} channels along dimension {self.axis}, "
                f"got shape {tuple(x.shape)}"
            )
        return split, tuple(shape)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Format):
            return NotImplemented
        return all(np.array_equal(getattr(self, f.name), getattr(other, f.name)) for f in fields(self))

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        words, fractions = np.unique(self.word_length), self.fraction_length
        bits = f"{words[0]}" if words.size == 1 else f"{words[0]} to {words[-1]}"
        kind = "" if self.signed.all() else " unsigned" if not self.signed.any() else " partly unsigned"
        if fractions is not None and self.axis is None:
            return f"⟨{bits}, {fractions}⟩{kind}"
        channels = "" if self.axis is None else f" in {self.word_length.size} channels"
        steps = np.unique(self.step)
        size = f"{steps[0]:.3g}" if steps.size == 1 else f"{steps[0]:.3g} to {steps[-1]:.3g}"
        return f"{bits} bits{kind}, step {size}{channels}"


def _numbers(array: Any, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    return torch.from_numpy(np.array(array)).to(device, dtype)


def _tensor(x: Any) -> Tensor:
    return x.detach() if isinstance(x, Tensor) else torch.from_numpy(np.asarray(x))


def _like(result: Tensor, x: Any) -> Any:
    return result if isinstance(x, Tensor) else result.numpy()
