"""The ways of spending bits that the recipe compares, by name: weights only, rounded to nearest.

| name     | what it is                                                                          |
|----------|-------------------------------------------------------------------------------------|
| float32  | plain SGD                                                                           |
| block    | block floating point: k bits in every layer, scale from the layer's largest weight  |
| compact  | `AdaPT.compact(bits=k)`; with other options, and without k, as the options say      |
"""

from collections.abc import Callable, Mapping
from typing import Any

import adapt
from adapt.switching.policy import Policy

NEVER = 10**9
"""Steps per epoch with which MuPPET never reaches the end of one, and so never switches."""


def _float32(bits: int | None, options: Mapping[str, Any]) -> None:
    if bits is not None or options:
        raise ValueError(f"float32 takes neither bits nor options, got bits={bits!r} and {dict(options)}")


def _block(bits: int | None, options: Mapping[str, Any]) -> Policy[Any]:
    if bits is None:
        raise ValueError("block needs the bits of every layer: give --bits")
    return adapt.MuPPET(steps_per_epoch=NEVER, word_lengths=(bits,), **options)


def _compact(bits: int | None, options: Mapping[str, Any]) -> Policy[Any]:
    return adapt.AdaPT.compact(**({} if bits is None else {"bits": bits}), **options)


METHODS: dict[str, Callable[[int | None, Mapping[str, Any]], Policy[Any] | None]] = {
    "float32": _float32,
    "block": _block,
    "compact": _compact,
}


def policy(method: str, bits: int | None, options: Mapping[str, Any]) -> Policy[Any] | None:
    """Return the policy of a method; None for float32.

    Args:
        method: a key of `METHODS`.
        bits: the budget, or None where the method has none.
        options: further keyword arguments of the policy.

    Raises:
        ValueError: no such method, or it lacks bits.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    return METHODS[method](bits, options)
