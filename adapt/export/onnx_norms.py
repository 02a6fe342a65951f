"""Batch normalisations between two roundings in single precision, proven on every word that can reach them.

A batch normalisation whose input is rounded to at most 8 bits has 256 inputs per channel, and where its output is
rounded as well, only the words after that count. Factors in float32 that give the right words for all of them can be
found by trying, and cost a quarter of the float64 arithmetic that rounds every value as torch does.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapt.export.onnx_graph import Graph
from adapt.export.onnx_roundings import Rounding, roundings

NUDGES = 32
"""How many float32 steps β is moved to either side. More than a few are hardly ever needed."""


def use_single_precision(graph: Graph) -> None:
    """Let batch normalisations in float64 between two roundings compute in float32, where no word changes."""
    found = roundings(graph)
    by_result = {rounding.result: rounding for rounding in found}
    by_source = {rounding.source: rounding for rounding in found}
    for norm in graph.nodes("BatchNormalization"):
        widen, narrow = graph.writer.get(norm.input[0]), graph.only_reader(norm.output[0])
        if widen is None or narrow is None or {widen.op_type, narrow.op_type} != {"Cast"}:
            continue
        before, after = by_result.get(widen.input[0]), by_source.get(narrow.output[0])
        if before is None or after is None or graph.only_reader(narrow.output[0]) is None or before.high > 255:
            continue
        scale, shift = (graph.constants[name] for name in norm.input[1:3])
        shifts = nudged(scale, shift, before, after)
        if shifts is None:
            continue
        one = np.ones(len(scale), np.float32)
        for index, values in enumerate((scale.astype(np.float32), shifts, 0 * one, one), start=1):
            norm.input[index] = graph.add_constant(f"{norm.input[index]}.float32", values)
        norm.input[0], norm.output[0] = widen.input[0], narrow.output[0]
        graph.graph.node.remove(narrow)
        graph.find()


def nudged(
    scale: NDArray[np.float64], shift: NDArray[np.float64], before: Rounding, after: Rounding
) -> NDArray[np.float32] | None:
    """Return β′, [channels], near β, with which float32 arithmetic gives every word that exact arithmetic gives.

    Runtimes may round x·α before they add β′, or not: both have to give the words.

    Args:
        scale, shift: α and β, [channels], float32 numbers in float64.
        before: how x is rounded, in at most 8 bits.
        after: how x·α + β is rounded.

    Returns:
        β′, or None where a channel has none.
    """
    words = np.arange(before.low, before.high + 1) - int(before.zero)
    x = words.astype(np.float32) * before.step  # [words]
    product = x.astype(np.float64) * scale[:, None]  # exact: [channels, words]
    expected = _words((product + shift[:, None]).astype(np.float32), after)
    unit = np.spacing(np.maximum(np.abs(product).max(1), np.abs(shift)).astype(np.float32))
    left, shifts = np.ones(len(scale), bool), shift.astype(np.float32)
    for nudge in sorted(range(-NUDGES, NUDGES + 1), key=abs):
        tried = (shift + nudge * unit.astype(np.float64) / 2).astype(np.float32)
        fused = (product + tried[:, None].astype(np.float64)).astype(np.float32)
        twice = product.astype(np.float32) + tried[:, None]
        equal = (_words(fused, after) == expected) & (_words(twice, after) == expected)
        shifts = np.where(left & equal.all(1), tried, shifts)
        left &= ~equal.all(1)
        if not left.any():
            return shifts
    return None


def _words(values: NDArray[np.float32], rounding: Rounding) -> NDArray[Any]:
    """The words that QuantizeLinear and Clip make of values."""
    words: NDArray[Any] = np.rint(values / rounding.step) + int(rounding.zero)
    return words.clip(rounding.low, rounding.high)
