"""Words as a dense stream of bits, each channel in its own word length, and back."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from adapt.numerics.format import Format


def smallest_type(form: Format) -> torch.dtype:
    """Return the smallest of int8, int16 and int32 that holds every word of a format."""
    for dtype in (torch.int8, torch.int16):
        held = torch.iinfo(dtype)
        if (form.low >= held.min).all() and (form.high <= held.max).all():
            return dtype
    return torch.int32


def pack_words(words: NDArray[np.signedinteger], form: Format) -> bytes:
    """Return words as a stream of bits, word_length bits for each.

    Channels of one word length and sign follow each other, in order of (word length, sign), each with its words in
    their own order. A word takes its lowest bits in two's complement; one signed bit is 1 for the word 1 and 0 for −1.
    The stream of every group of channels is padded to a whole byte.

    Args:
        words: the words of a tensor in its format.
        form: the format.
    """
    rows = _by_channel(words, form)
    return b"".join(
        _pack(_codes(rows[chosen].reshape(-1).astype(np.int64), width, signed), width)
        for chosen, width, signed in _groups(form)
    )


def unpack_words(packed: bytes, shape: Sequence[int], form: Format) -> NDArray[np.int32]:
    """Return the words that `pack_words` packed, in a tensor's shape.

    Raises:
        ValueError: the stream does not have the length of words of this shape and format.
    """
    size = packed_size(shape, form)
    if len(packed) != size:
        raise ValueError(f"{list(shape)} words of {form} take {size} bytes, got {len(packed)}")
    dimensions, order, channels = _arrangement(shape, form)
    numel = math.prod(shape)
    rows = np.empty((channels, numel // channels if channels else 0), np.int32)
    start = 0
    for chosen, width, signed in _groups(form):
        count = len(chosen) * rows.shape[1]
        stop = start + _size(count, width)
        codes = _unpack(packed[start:stop], count, width)
        rows[chosen] = _from_codes(codes, width, signed).reshape(len(chosen), -1)
        start = stop
    arranged = rows.reshape([dimensions[i] for i in order])
    return np.ascontiguousarray(arranged.transpose(np.argsort(order)).reshape(shape))


def packed_size(shape: Sequence[int], form: Format) -> int:
    """Return how many bytes the words of a tensor of this shape take.

    Raises:
        ValueError: a tensor of this shape does not have the format's channels.
    """
    _, _, channels = _arrangement(shape, form)
    elements = math.prod(shape) // channels if channels else 0
    return sum(_size(len(chosen) * elements, width) for chosen, width, _ in _groups(form))


def _size(count: int, width: int) -> int:
    """Return the bytes that `count` words take: those above 8 bits lie in planes, each padded to a whole byte."""
    whole, rest = divmod(width, 8)
    return whole * count + -(-rest * count // 8)


def _pack(codes: NDArray[np.uint32], width: int) -> bytes:
    if width > 8:
        return _pack(codes & np.uint32(0xFF), 8) + _pack(codes >> np.uint32(8), width - 8)
    octets = codes.astype(np.uint8)
    if width < 8:
        bits = np.unpackbits(octets[:, None], axis=1, count=width, bitorder="little")
        octets = np.packbits(bits, bitorder="little")
    return octets.tobytes()


def _unpack(packed: bytes, count: int, width: int) -> NDArray[np.uint32]:
    if width > 8:
        high: NDArray[np.uint32] = _unpack(packed[count:], count, width - 8) << np.uint32(8)
        return high | _unpack(packed[:count], count, 8)
    octets = np.frombuffer(packed, np.uint8)
    if width < 8:
        bits = np.unpackbits(octets, count=count * width, bitorder="little").reshape(count, width)
        octets = np.packbits(bits, axis=1, bitorder="little")[:, 0]
    return octets.astype(np.uint32)


def _codes(words: NDArray[np.int64], width: int, signed: bool) -> NDArray[np.uint32]:
    codes = words > 0 if signed and width == 1 else words & 2**width - 1
    return codes.astype(np.uint32)


def _from_codes(codes: NDArray[np.uint32], width: int, signed: bool) -> NDArray[np.int64]:
    words = codes.astype(np.int64)
    if signed and width == 1:
        return 2 * words - 1
    return np.where(words >= 2 ** (width - 1), words - 2**width, words) if signed else words


def _groups(form: Format) -> Iterator[tuple[NDArray[np.intp], int, bool]]:
    """Yield the channels of each (word length, sign)."""
    kinds = np.stack([np.atleast_1d(form.word_length), np.atleast_1d(form.signed)], axis=1)
    for kind in np.unique(kinds, axis=0):
        yield np.flatnonzero((kinds == kind).all(axis=1)), int(kind[0]), bool(kind[1])


def _by_channel(words: NDArray[np.signedinteger], form: Format) -> NDArray[np.signedinteger]:
    """Return the words as [channels, elements of a channel]."""
    dimensions, order, channels = _arrangement(words.shape, form)
    return words.reshape(dimensions).transpose(order).reshape(channels, words.size // channels if channels else 0)


def _arrangement(shape: Sequence[int], form: Format) -> tuple[list[int], list[int], int]:
    """How to bring a tensor's channels to the front: the shape to view it in, the order of dimensions, the count.

    Raises:
        ValueError: a tensor of this shape does not have the format's channels.
    """
    if form.axis is None:
        return [1, *shape], list(range(len(shape) + 1)), 1
    dimensions, first = list(shape), [form.axis]
    fits = form.axis < len(shape)
    if fits and form.groups > 1:
        fits = shape[0] % form.groups == 0
        dimensions, first = [form.groups, shape[0] // form.groups, *shape[1:]], [0, form.axis + 1]
    if not fits or math.prod(dimensions[i] for i in first) != form.word_length.size:
        raise ValueError(f"a tensor of shape {list(shape)} does not have the channels of {form}")
    order = first + [i for i in range(len(dimensions)) if i not in first]
    return dimensions, order, form.word_length.size
