"""Operations on the bits of float32 and bfloat16 numbers, with instructions for which Numba has no functions."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic


@intrinsic  # type: ignore[untyped-decorator]
def bits_of(context: Any, x: Any) -> Any:
    """Return the bits of a float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), generate


@intrinsic  # type: ignore[untyped-decorator]
def from_bits(context: Any, bits: Any) -> Any:
    """Return the float32 with these bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


@intrinsic  # type: ignore[untyped-decorator]
def times_sign_of(context: Any, factor: Any, x: Any) -> Any:
    """Return the factor if the sign bit of x is clear, its negative if it is set; both float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = ir.IntType(32)
        factor, x = (builder.bitcast(argument, word) for argument in arguments)
        return builder.bitcast(builder.xor(factor, builder.and_(x, word(0x80000000))), ir.FloatType())

    return types.float32(types.float32, types.float32), generate


@intrinsic  # type: ignore[untyped-decorator]
def larger_magnitude(context: Any, x: Any, bits: Any) -> Any:
    """Return the larger of |x| and a magnitude, as float32 bits, which are ordered like integers; NaN is above all."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = ir.IntType(32)
        magnitude = builder.and_(builder.bitcast(arguments[0], word), word(0x7FFFFFFF))
        return builder.select(builder.icmp_signed(">", magnitude, arguments[1]), magnitude, arguments[1])

    return types.int32(types.float32, types.int32), generate


@intrinsic  # type: ignore[untyped-decorator]
def ordered(context: Any, x: Any) -> Any:
    """Map a float32 to an integer, preserving order; −0 comes before 0, and NaN lies beyond the infinities."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = ir.IntType(32)
        bits = builder.bitcast(arguments[0], word)
        return builder.xor(bits, builder.and_(builder.ashr(bits, word(31)), word(0x7FFFFFFF)))

    return types.int32(types.float32), generate


@intrinsic  # type: ignore[untyped-decorator]
def number_at(context: Any, place: Any) -> Any:
    """Return the float32 that `ordered` maps to this integer."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = ir.IntType(32)
        bits = builder.xor(arguments[0], builder.and_(builder.ashr(arguments[0], word(31)), word(0x7FFFFFFF)))
        return builder.bitcast(bits, ir.FloatType())

    return types.float32(types.int32), generate


@intrinsic  # type: ignore[untyped-decorator]
def widened(context: Any, x: Any) -> Any:
    """Convert bfloat16 bits to float32, exactly."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = ir.IntType(32)
        return builder.bitcast(builder.shl(builder.zext(arguments[0], word), word(16)), ir.FloatType())

    return types.float32(types.uint16), generate


@intrinsic  # type: ignore[untyped-decorator]
def narrowed(context: Any, x: Any) -> Any:
    """Convert a float32 to bfloat16 bits, rounding to nearest even; NaN stays NaN."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = ir.IntType(32)
        bits = builder.bitcast(arguments[0], word)
        half = builder.add(builder.and_(builder.lshr(bits, word(16)), word(1)), word(0x7FFF))
        rounded = builder.add(bits, half)
        chosen = builder.select(builder.fcmp_unordered("uno", arguments[0], arguments[0]), word(0x7FC00000), rounded)
        return builder.trunc(builder.lshr(chosen, word(16)), ir.IntType(16))

    return types.uint16(types.float32), generate
