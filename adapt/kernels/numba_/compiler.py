"""How functions are compiled for the CPU by Numba, and what all of them need: arrays at addresses, and sums."""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

if numba.config.DISABLE_JIT:
    raise ImportError("NUMBA_DISABLE_JIT is set")


def compiled(
    function: Callable[..., Any], *, fastmath: Collection[str] = (), inline: str = "never"
) -> Callable[..., Any]:
    """Compile without the interpreter lock, and keep the result on disk where a folder can be written.

    Operations are exact unless `fastmath` names what LLVM may do to those of this very function. With inline="always"
    it becomes part of its callers before they are compiled; otherwise LLVM decides that.

    Numba takes a result from disk as long as the function's own file has not changed: after changing functions that
    are called from another file, remove what is kept for that one (`adapt/kernels/numba_/__pycache__`).
    """
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": set(fastmath) or False}
    options["inline"] = inline
    try:
        return numba.njit(cache=True, **options)(function)  # type: ignore[no-any-return]
    except RuntimeError:
        return numba.njit(**options)(function)  # type: ignore[no-any-return]


@partial(compiled, fastmath={"reassoc"})
def add(total: Any, term: Any) -> Any:
    """For a sum whose order the compiler may choose, which it needs to use vector registers; it is left no other."""
    return total + term


@partial(compiled, fastmath={"reassoc", "contract"})
def add_square(total: Any, term: Any) -> Any:
    """The same for the square of a widened float32 number: it is exact in float64, so fusing changes nothing."""
    return total + term * term


@intrinsic  # type: ignore[untyped-decorator]
def _pointer(context: Any, address: Any, kind: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        # For Intel's processors LLVM takes half of a vector register where it is not told otherwise. llvmlite knows no
        # attributes with values; it prints what is among the others.
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(kind.dtype)(types.int64, kind), generate


@partial(compiled, inline="always")
def array(address: int, numel: int, kind: Any) -> Any:
    """The array of a NumPy type that starts at an address. Loops over it may use the widest registers there are."""
    return numba.carray(_pointer(address, kind), numel)


@partial(compiled, inline="always")
def floats(address: int, numel: int) -> Any:
    """The float32 array that starts at an address."""
    return array(address, numel, np.float32)


LINE = 64
"""Bytes that travel between memory and the caches together."""


@intrinsic  # type: ignore[untyped-decorator]
def _prefetch_line(context: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        function = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        to_read, into_all_caches, data = number(0), number(3), number(1)
        builder.call(function, [builder.inttoptr(arguments[0], byte), to_read, into_all_caches, data])
        return context.get_dummy_value()

    return types.none(types.int64), generate


@compiled
def prefetch(address: int, size: int) -> None:
    """Ask for so many bytes of memory ahead of their use; they need not belong to anything.

    Where much is computed with each element, the processor looks too few elements ahead by itself, and not beyond the
    end of a page.
    """
    for line in range(0, size, LINE):
        _prefetch_line(address + line)
