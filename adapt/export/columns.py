"""Many formats in few bytes: JSON for those of whole tensors, and columns of numbers for those with channels."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapt.export.encoding import compressed, decompressed, planes
from adapt.numerics import Precision
from adapt.numerics.format import Format
from adapt.numerics.packing import pack, unpack

_COLUMNS = {"step": "<f4", "word_length": "<u1", "signed": "<u1", "low": "<i8", "high": "<i8"}
"""The columns of formats with channels, in this order, and NumPy's types of their numbers."""

_LARGEST_RATIO = 1024
"""The largest ratio by which columns are compressed; beyond it they are stored as they are."""


def packed_formats(formats: Mapping[str, Format]) -> tuple[dict[str, Any], bytes]:
    """Return formats compactly as JSON can hold them, and the columns of those that have channels."""
    packed: dict[str, Any] = {}
    with_channels = [form for form in formats.values() if form.axis is not None]
    for name, form in formats.items():
        if form.axis is not None:
            packed[name] = {"channels": form.word_length.size, "axis": form.axis, "groups": form.groups}
        else:
            fixed = _fixed_point(form)
            packed[name] = pack(form) if fixed is None else [fixed.word_length, fixed.fraction_length]
    if not with_channels:
        return packed, b""
    numbers = b"".join(
        planes(np.concatenate([getattr(form, name) for form in with_channels]).astype(kind))
        for name, kind in _COLUMNS.items()
    )
    short = compressed(numbers)
    return packed, short if len(numbers) <= len(short) * _LARGEST_RATIO else numbers


def _fixed_point(form: Format) -> Precision | None:
    """Return the ⟨WL, FL⟩ that equals a format, if there is one."""
    if form.fraction_length is None or not form.word_length >= 2:
        return None
    precision = Precision(int(form.word_length), int(form.fraction_length))
    return precision if Format.of(precision) == form else None


def unpacked_formats(packed: Mapping[str, Any], content: bytes) -> dict[str, Format]:
    """Return the formats that `packed_formats` packed.

    Raises:
        ValueError: an entry is no packed format, or the columns are not those of the formats with channels.
    """
    counts = {
        name: entry["channels"] for name, entry in packed.items() if isinstance(entry, dict) and "channels" in entry
    }
    if not all(type(count) is int and 0 < count < 2**31 for count in counts.values()):
        raise ValueError("its formats should count their channels")
    columns = _columns(content, sum(counts.values())) if counts else {}
    formats, first = {}, 0
    for name, entry in packed.items():
        if name in counts:
            here = slice(first, first + counts[name])
            first = here.stop
            arrays = {column: values[here].tolist() for column, values in columns.items()}
            arrays["signed"] = [sign > 0 for sign in arrays["signed"]]
            formats[name] = unpack({**arrays, "axis": entry.get("axis"), "groups": entry.get("groups", 1)})
        elif isinstance(entry, list):
            if len(entry) != 2 or not all(type(number) is int for number in entry):
                raise ValueError(f"the format of {name:.80} does not make sense: {entry!r:.80}")
            formats[name] = Format.of(Precision(*entry))
        else:
            formats[name] = unpack(entry)
    return formats


def _columns(content: bytes, channels: int) -> dict[str, NDArray[Any]]:
    size = channels * sum(np.dtype(kind).itemsize for kind in _COLUMNS.values())
    if size > _LARGEST_RATIO * len(content):
        raise ValueError(f"{len(content)} bytes are too few for the formats of {channels} channels")
    numbers = content if len(content) == size else decompressed(content, size)
    columns: dict[str, NDArray[Any]] = {}
    start = 0
    for name, kind in _COLUMNS.items():
        stop = start + channels * np.dtype(kind).itemsize
        parts = np.frombuffer(numbers[start:stop], np.uint8).reshape(-1, channels)
        columns[name] = np.ascontiguousarray(parts.T).view(kind).reshape(-1)
        start = stop
    return columns
