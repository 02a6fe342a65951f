"""Formats as plain numbers, strings and lists, for files that are read without trusting them."""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapt.numerics.block_float import BlockFloat
from adapt.numerics.channel_precision import ChannelPrecision, FixedPoint
from adapt.numerics.fixed_point import Precision
from adapt.numerics.format import Format

LayerFormat = FixedPoint | BlockFloat | None
"""A policy's choice for a layer: fixed point, block floating point, or None for float32."""


def pack_formats(formats: Iterable[LayerFormat]) -> list[Any]:
    """Return each layer's format as plain data.

    These are [word length, fraction length], [word length, [fraction length of each channel]], ["block", word length]
    or None.
    """
    return [None if form is None else _packed(form) for form in formats]


def _packed(form: FixedPoint | BlockFloat) -> list[Any]:
    if isinstance(form, BlockFloat):
        return ["block", form.word_length]
    if isinstance(form, ChannelPrecision):
        return [form.word_length, list(form.fraction_lengths)]
    return [form.word_length, form.fraction_length]


def unpack_formats(packed: Iterable[Any]) -> tuple[LayerFormat, ...]:
    """Return the formats that `pack_formats` packed.

    Raises:
        ValueError: an item is something else.
    """
    formats: list[LayerFormat] = []
    for item in packed:
        if item is None:
            formats.append(None)
            continue
        first, second = item if isinstance(item, list) and len(item) == 2 else (None, None)
        if first == "block" and type(second) is int:
            formats.append(BlockFloat(second))
        elif type(first) is int and type(second) is int:
            formats.append(Precision(first, second))
        elif type(first) is int and isinstance(second, list) and all(type(length) is int for length in second):
            formats.append(ChannelPrecision(first, tuple(second)))
        else:
            raise ValueError(_BADLY_PACKED.format(item))
    return tuple(formats)


_BADLY_PACKED = (
    "a format should be packed as [word length, fraction length], [word length, [fraction length of each channel]], "
    '["block", word length] or None, got {!r:.80}'
)


def pack(form: Format) -> dict[str, Any]:
    """Return a tensor's format as JSON-compatible numbers and lists, by attribute name."""
    packed = {field.name: getattr(form, field.name) for field in fields(form)}
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in packed.items()}


def unpack(packed: Any) -> Format:
    """Return the format that `pack` packed. Attributes that older versions did not have get their defaults.

    Raises:
        ValueError: this is not a packed format.
    """
    if not isinstance(packed, Mapping) or not all(isinstance(name, str) for name in packed):
        raise ValueError(f"a format should be packed as numbers by name, got {packed!r:.80}")
    try:
        check_channels(packed)
        return Format(**{**packed, **arrays_of(packed, ("word_length", "step", "signed", "low", "high"))})
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        raise ValueError(f"a packed format does not make sense: {error!s:.200}") from error


KINDS = {
    **dict.fromkeys(("word_length", "integer_length", "fraction_length", "low", "high"), "i"),
    **dict.fromkeys(("step", "minimum", "maximum"), "fi"),
    "signed": "b",
}
"""The NumPy kinds that the numbers of a format in a file may have."""


def arrays_of(packed: Mapping[str, Any], names: Iterable[str]) -> dict[str, NDArray[Any]]:
    """Return these numbers of a packed format as arrays.

    Raises:
        KeyError, TypeError, ValueError, OverflowError: one is missing or of another kind than in `KINDS`.
    """
    arrays = {name: np.array(packed[name]) for name in names}
    for name, array in arrays.items():
        if array.dtype.kind not in KINDS[name]:
            raise TypeError(f"{name} is {packed[name]!r:.80}")
    return arrays


def check_channels(packed: Mapping[str, Any]) -> None:
    """Check where the channels of a packed format lie.

    Raises:
        ValueError: the axis or the number of groups makes no sense.
    """
    for name, lowest in (("axis", 0), ("groups", 1)):
        value = packed.get(name, 1)
        if not (type(value) is int and lowest <= value < 2**31) and not (name == "axis" and value is None):
            raise ValueError(f"{name} is {value!r:.80}")
