"""Number formats: fixed point, block floating point, learned steps, and `Format`, which describes them all."""

from adapt.numerics.block_float import BlockFloat, block_precision
from adapt.numerics.channel_precision import LARGEST_SHIFT, ChannelPrecision, FixedPoint
from adapt.numerics.fixed_point import (
    HIGHEST_FRACTION,
    LONGEST_WORD,
    LOWEST_FRACTION,
    SHORTEST_WORD,
    Bounds,
    Precision,
    largest_held,
)
from adapt.numerics.format import Format
from adapt.numerics.packing import LayerFormat, pack, pack_formats, unpack, unpack_formats

__all__ = [
    "HIGHEST_FRACTION",
    "LARGEST_SHIFT",
    "LONGEST_WORD",
    "LOWEST_FRACTION",
    "SHORTEST_WORD",
    "BlockFloat",
    "Bounds",
    "ChannelPrecision",
    "FixedPoint",
    "Format",
    "LayerFormat",
    "Precision",
    "block_precision",
    "largest_held",
    "pack",
    "pack_formats",
    "unpack",
    "unpack_formats",
]
