"""Word lengths set by hand: bounds for the layers whose names match a pattern."""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from adapt import arguments
from adapt.arguments import is_whole
from adapt.numerics import Bounds

LayerBits = Mapping[str, int | tuple[int, int]]
"""Bits by pattern: a fixed number, or the fewest and the most."""

_LISTED = 40


def checked(layer_bits: object, *, shortest: int, longest: int) -> dict[str, Bounds]:
    """Check the user's `layer_bits`, and return bounds by pattern; a single number becomes both bounds.

    Args:
        layer_bits: the user's argument.
        shortest, longest: the fewest and the most bits that are allowed.

    Raises:
        TypeError, ValueError: it is not a mapping from patterns to allowed bits or pairs of bits.
    """
    if not isinstance(layer_bits, Mapping) or not all(isinstance(pattern, str) for pattern in layer_bits):
        raise TypeError(
            f'layer_bits must map patterns to bits, such as {{"conv1": 8, "head.*": (6, 8)}}, got {layer_bits!r:.200}'
        )
    found: dict[str, Bounds] = {}
    for pattern, bits in layer_bits.items():
        name = f"layer_bits[{pattern!r}]"
        low, high = arguments.bounds(name, _pair(bits))
        if not shortest <= low <= high <= longest:
            raise ValueError(f"{name} must lie between {shortest} and {longest} bits, got {bits!r}")
        found[pattern] = low, high
    return found


def bounds_of(layer_bits: LayerBits, names: Iterable[str], *, default: Bounds) -> tuple[Bounds, ...]:
    """Return the bounds of each layer: those of the first pattern that matches its name, or the default."""
    found = (_first(layer_bits, name) for name in names)
    return tuple(default if pattern is None else _pair(layer_bits[pattern]) for pattern in found)


def check_patterns(layer_bits: LayerBits, names: Sequence[str]) -> None:
    """Check that every pattern decides on at least one layer.

    Args:
        layer_bits: bits by pattern.
        names: the names of everything that is, or may become, a layer.

    Raises:
        ValueError: a pattern matches nothing, or only layers that an earlier pattern matches.
    """
    deciding = {_first(layer_bits, name) for name in names}
    for pattern in layer_bits:
        if pattern in deciding:
            continue
        covered = [name for name in names if _matches(pattern, name)]
        if covered:
            raise ValueError(
                f"layer_bits[{pattern!r}] has no effect, because {_first(layer_bits, covered[0])!r} comes first and "
                f"matches {covered[0]} too: put the narrower pattern first"
            )
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        raise ValueError(f"layer_bits[{pattern!r}] matches no layer: the layers are {', '.join(names[:_LISTED])}{more}")


def _pair(bits: Any) -> Bounds:
    return (bits, bits) if is_whole(bits) else bits


def _first(layer_bits: LayerBits, name: str) -> str | None:
    return next((pattern for pattern in layer_bits if _matches(pattern, name)), None)


def _matches(pattern: str, name: str) -> bool:
    """Return whether a pattern matches a tensor or a module that holds it.

    For example, "conv1" and "conv?.weight" match "conv1.weight".
    """
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:length]), pattern) for length in range(1, len(parts) + 1))
