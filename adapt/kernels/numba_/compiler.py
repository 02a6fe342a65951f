"""Compilation for the CPU by Numba, and tools for compiled functions: arrays at addresses, sums and prefetching."""

import logging
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import event
from numba.extending import intrinsic

if numba.config.DISABLE_JIT:
    raise ImportError("NUMBA_DISABLE_JIT is set")


class _Notice(event.Listener):  # type: ignore[misc]
    """Logs one line when the first function of this package is compiled, so that users know why they have to wait.

    Numba sends this event only if the function is not in its cache.
    """

    def on_start(self, compilation: Any) -> None:
        function = compilation.data["dispatcher"]
        if function.py_func.__module__.startswith("adapt."):
            event.unregister("numba:compile", self)
            folder = function.stats.cache_path
            kept = f"once; the result is kept in {folder}" if folder else "in every process: there is no cache folder"
            # Logged as a warning only to be visible; logging.getLogger("adapt") can silence it.
            logging.getLogger("adapt").warning(
                "adapt compiles its kernels for this processor (some ten seconds, %s)", kept
            )

    def on_end(self, compilation: Any) -> None:
        pass


event.register("numba:compile", _Notice())


def compiled(
    function: Callable[..., Any], *, fastmath: Collection[str] = (), inline: str = "never"
) -> Callable[..., Any]:
    """Compile a function that releases the interpreter lock, and cache the result on disk if a folder is writable.

    Arithmetic is exact unless `fastmath` lists what LLVM may change in this particular function. With inline="always"
    the function is inlined into its callers before they are compiled; otherwise LLVM decides.

    Numba uses a cached result as long as the function's own file has not changed. After changing a function that is
    called from another file, delete that file's cache (in `adapt/kernels/numba_/__pycache__`).
    """
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": set(fastmath) or False}
    options["inline"] = inline
    try:
        return numba.njit(cache=True, **options)(function)  # type: ignore[no-any-return]
    except RuntimeError:
        return numba.njit(**options)(function)  # type: ignore[no-any-return]


@partial(compiled, fastmath={"reassoc"})
def add(total: Any, term: Any) -> Any:
    """Add to a sum whose order, and nothing else, the compiler may change, so that it can use vector registers."""
    return total + term


@partial(compiled, fastmath={"reassoc", "contract"})
def add_square(total: Any, term: Any) -> Any:
    """Like `add`, for the square of a widened float32 number, which is exact in float64, so fusing changes nothing."""
    return total + term * term


@intrinsic  # type: ignore[untyped-decorator]
def _pointer(context: Any, address: Any, kind: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        # By default LLVM only uses half of a vector register on Intel processors. llvmlite does not support attributes
        # with values, but prints everything in this set.
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(kind.dtype)(types.int64, kind), generate


@partial(compiled, inline="always")
def array(address: int, numel: int, kind: Any) -> Any:
    """Return the array of a NumPy type at an address. Loops over it may use the widest vector registers."""
    return numba.carray(_pointer(address, kind), numel)


@partial(compiled, inline="always")
def floats(address: int, numel: int) -> Any:
    """Return the float32 array at an address."""
    return array(address, numel, np.float32)


LINE = 64
"""Bytes in a cache line."""


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
    """Fetch `size` bytes into the caches before they are used; the address need not be valid.

    If each element takes much computation, the processor's own prefetching looks too few elements ahead, and never
    beyond the end of a page.
    """
    for line in range(0, size, LINE):
        _prefetch_line(address + line)
