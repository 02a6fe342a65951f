"""Encode the words of a tensor in the fewest bytes: in their own bits, or compressed by zstd."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapt.export.bits import pack_words, packed_size, smallest_type, unpack_words
from adapt.export.extras import needs
from adapt.numerics.format import Format

LARGEST_RATIO = 256
"""The largest ratio by which words are compressed, so that a small file cannot unpack to any size."""

_LEVELS = (1, 19)
"""zstd's levels to try. The first is better for varied words, because it does not look for repetitions."""

_LARGE = 2**24
"""The slow level is left out from this many bytes on."""


def encoded(words: NDArray[np.signedinteger], form: Format) -> tuple[str, bytes]:
    """Return the encoding that takes the fewest bytes, "bits" or "zstd", and the encoded words."""
    bits, short = pack_words(words, form), compressed(planes(words))
    is_worthwhile = len(short) < len(bits) and len(short) * LARGEST_RATIO >= words.nbytes
    return ("zstd", short) if is_worthwhile else ("bits", bits)


def decoded(content: bytes, encoding: str, shape: Sequence[int], form: Format) -> Tensor:
    """Return the words that `encoded` encoded, in the smallest integer type of their format.

    Raises:
        ValueError: the content does not hold words of this format in this shape.
    """
    dtype = smallest_type(form)
    # Raises where a tensor of this shape does not have the format's channels.
    size = packed_size(shape, form)
    if encoding == "bits":
        words = unpack_words(content, shape, form)
    else:
        numel = math.prod(shape)
        if numel * dtype.itemsize > LARGEST_RATIO * len(content):
            raise ValueError(f"{len(content)} compressed bytes are too few for words of {size} bytes")
        parts = np.frombuffer(decompressed(content, numel * dtype.itemsize), np.uint8).reshape(dtype.itemsize, numel)
        words = np.ascontiguousarray(parts.T).view(f"<i{dtype.itemsize}").reshape(shape).astype(np.int32)
    tensor = torch.from_numpy(words).to(dtype)
    if not torch.equal(form.integers(form.values(tensor)), tensor.int()):
        raise ValueError(f"it holds words that are not of {form}")
    return tensor


def planes(words: NDArray[np.signedinteger]) -> bytes:
    """Return the lowest bytes of all words, then the next."""
    little = np.ascontiguousarray(words).astype(words.dtype.newbyteorder("<"), copy=False)
    parts: bytes = little.reshape(-1).view(np.uint8).reshape(-1, words.dtype.itemsize).T.tobytes()
    return parts


def compressed(content: bytes) -> bytes:
    """Compress bytes by zstd at several levels, and return the smallest frame."""
    zstandard = needs("zstandard", "export")
    levels = _LEVELS if len(content) < _LARGE else _LEVELS[:1]
    frames: list[bytes] = [zstandard.ZstdCompressor(level=level).compress(content) for level in levels]
    return min(frames, key=len)


def content_size(content: bytes) -> int:
    """Return how many bytes a frame of zstd says that it unpacks to.

    Raises:
        ValueError: it does not say, or is not a frame.
    """
    zstandard = needs("zstandard", "export")
    try:
        size: int = zstandard.frame_content_size(content)
    except zstandard.ZstdError as error:
        raise ValueError(f"a compressed part is damaged: {error}") from error
    if size < 0:
        raise ValueError("a compressed part does not say how long it is")
    return size


def decompressed(content: bytes, size: int) -> bytes:
    """Return what `compressed` compressed, which must be of this size.

    Raises:
        ValueError: it is not, or it is damaged.
    """
    zstandard = needs("zstandard", "export")
    try:
        if zstandard.frame_content_size(content) != size:
            raise ValueError(f"{len(content)} compressed bytes do not unpack to {size}")
        return bytes(zstandard.ZstdDecompressor().decompress(content, max_output_size=max(size, 1)))
    except zstandard.ZstdError as error:
        raise ValueError(f"a compressed part is damaged: {error}") from error
