"""Formats as plain numbers, strings and lists, for files that are read without trusting them."""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from adapt.numerics.block_float import BlockFloat
from adapt.numerics.fixed_point import Precision
from adapt.numerics.format import Format

LayerFormat = Precision | BlockFloat | None
"""A policy's choice for a layer: fixed point, block floating point, or None for float32."""


def pack_formats(formats: Iterable[LayerFormat]) -> list[Any]:
    """Return each layer's format as [word length, fraction length], ["block", word length] or None."""
    return [
        None
        if f is None
        else ["block", f.word_length]
        if isinstance(f, BlockFloat)
        else [f.word_length, f.fraction_length]
        for f in formats
    ]


def unpack_formats(packed: Iterable[Any]) -> tuple[LayerFormat, ...]:
    """Return the formats that `pack_formats` packed.

    Raises:
        ValueError: an item is something else.
    """
    formats: list[LayerFormat] = []
    for item in packed:
        if item is None:
            formats.append(None)
        elif not isinstance(item, list) or len(item) != 2 or type(item[1]) is not int:
            raise ValueError(_BADLY_PACKED.format(item))
        elif item[0] == "block":
            formats.append(BlockFloat(item[1]))
        elif type(item[0]) is int:
            formats.append(Precision(*item))
        else:
            raise ValueError(_BADLY_PACKED.format(item))
    return tuple(formats)


_BADLY_PACKED = (
    'a format should be packed as [word length, fraction length], ["block", word length] or None, got {!r:.80}'
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
    for name in ("axis", "groups"):
        value = packed.get(name, 1)
        if not (type(value) is int and 0 <= value < 2**31) and not (name == "axis" and value is None):
            raise ValueError(f"the {name} of a format should be a small whole number, got {value!r:.80}")
    try:
        arrays = {name: np.array(packed[name]) for name in _KINDS}
        if wrong := [name for name, array in arrays.items() if array.dtype.kind not in _KINDS[name]]:
            raise TypeError(f"{wrong[0]} holds {packed[wrong[0]]!r:.80}")
        return Format(**{**packed, **arrays})
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        raise ValueError(f"a packed format does not make sense: {error!s:.200}") from error


_KINDS = {"word_length": "i", "step": "fi", "signed": "b", "low": "i", "high": "i"}
"""The NumPy kinds that each attribute may have."""
