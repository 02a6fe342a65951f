"""Covering arrays: few combinations of parameters that hold every value, or every pair of values, at least once."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import pytest


def covering(combinations: Sequence[Mapping[Any, Any]], strength: int) -> list[int]:
    """Return the positions of combinations that hold all sets of `strength` values that occur together in any of them.

    Greedy: each is the first of those that add most. A combination maps the names of parameters to hashable values.
    """
    missing = [
        set(itertools.combinations(sorted(combination.items()), min(strength, len(combination))))
        for combination in combinations
    ]
    chosen = []
    while any(missing):
        best = max(range(len(missing)), key=lambda position: len(missing[position]))
        added = missing[best].copy()
        for sets in missing:
            sets -= added
        chosen.append(best)
    return sorted(chosen)


def picked(values: Mapping[str, Any] | Sequence[Any], *quick: Any) -> list[Any]:
    """Return parameters by their names, or values that are their own names: all but the quick ones are long."""
    named = values if isinstance(values, Mapping) else {value: value for value in values}
    assert named.keys() >= set(quick)
    return [
        pytest.param(value, id=str(name), marks=() if name in quick else pytest.mark.long)
        for name, value in named.items()
    ]
