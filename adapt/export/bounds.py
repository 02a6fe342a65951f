"""Bounds on the sums of layers: where they hold, every runtime computes the same, in whatever order it adds."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from adapt.export.exported import Exported
from adapt.export.float32 import SIGNIFICAND
from adapt.layers.naming import joined
from adapt.layers.products import PRODUCTS, TransposedLinear
from adapt.numerics.format import Format


@dataclass(frozen=True)
class Bound:
    """How large the sums of a layer can become, and whether that makes them exact.

    Attributes:
        layer: the path of the layer.
        bits: of the largest sum, log₂(max over output channels of Σ|q_w|·max|q_x| + |q_b|), as multiples of the unit
            s_w·s_x, or of a finer one where the bias needs it; NaN where there is no such unit.
        reason: why other runtimes may compute other sums; "" where none can.
    """

    layer: str
    bits: float
    reason: str

    @property
    def holds(self) -> bool:
        """Whether all sums are exact in float32 and in every wider type, in any order of summation."""
        return not self.reason


def accumulator_bounds(exported: Exported) -> dict[str, Bound]:
    """Return the bound of every linear layer and convolution with quantised weights, by its path.

    Where Σ|q_w|·max|q_x| + |q_b| < 2²⁴ in every output channel, all partial sums are whole multiples of one power of
    two that float32 holds, so that every order of summation gives the same bits.

    Raises:
        ValueError: a packed file was loaded without a module.
    """
    if exported.structure is None:
        raise ValueError("bounds need to know the layers: load the packed file with module=")
    return {
        path: _bound(path, layer, exported)
        for path, layer in exported.structure.named_modules()
        if isinstance(layer, PRODUCTS) and exported.name_of(path, "weight") in exported.words
    }


def _bound(path: str, layer: nn.Module, exported: Exported) -> Bound:
    weight = exported.name_of(path, "weight")
    form, words = exported.formats[weight], exported.words[weight]
    inputs = exported.formats.get(joined(path, "input"))
    if inputs is None:
        return Bound(path, np.nan, "its inputs are not rounded")
    if form.fraction_length is None or inputs.fraction_length is None:
        return Bound(path, np.nan, "its steps are no powers of two, so that products are rounded")
    bias = getattr(layer, "bias", None)
    values = None if bias is None else _values(exported, exported.name_of(path, "bias"))
    sums = _magnitudes(words, layer)
    largest, with_bias = _largest(sums, form, inputs, values)
    bits = float(np.log2(max(with_bias, 1)))
    if with_bias < 2**SIGNIFICAND:
        return Bound(path, bits, "")
    what = "sums" if largest >= 2**SIGNIFICAND else "sums with their bias, which lies on a finer grid,"
    return Bound(path, bits, f"its {what} can need {int(with_bias).bit_length()} bits, and float32 holds {SIGNIFICAND}")


def _magnitudes(words: torch.Tensor, layer: Any) -> NDArray[np.int64]:
    """Σ|q_w| of every output channel, int64 [groups of a transposed convolution · channels]."""
    magnitude = words.long().abs()
    if isinstance(layer, TransposedLinear):
        return np.asarray(magnitude.sum(0).numpy())
    if getattr(layer, "transposed", False):
        grouped = magnitude.view(layer.groups, -1, *magnitude.shape[1:])
        return np.asarray(grouped.transpose(1, 2).flatten(0, 1).flatten(1).sum(1).numpy())
    return np.asarray(magnitude.flatten(1).sum(1).numpy())


def _largest(
    sums: NDArray[np.int64], form: Format, inputs: Format, bias: NDArray[np.float64] | None
) -> tuple[int, int]:
    """The largest sum without and with its bias, each as a multiple of its channel's unit."""
    assert form.fraction_length is not None
    assert inputs.fraction_length is not None
    peak = int(max(-inputs.low, inputs.high))
    fractions = np.broadcast_to(form.fraction_length, sums.shape) + inputs.fraction_length
    largest = with_bias = 0
    for index, (total, fraction) in enumerate(zip(sums.tolist(), fractions.tolist(), strict=True)):
        value = Fraction(total * peak)
        largest = max(largest, total * peak)
        if bias is not None:
            added = abs(Fraction(float(bias[index])) * Fraction(2) ** fraction)
            # In units of 1/denominator, all terms are integers.
            value = (value + added) * added.denominator
        with_bias = max(with_bias, int(value))
    return largest, with_bias


def _values(exported: Exported, name: str) -> NDArray[np.float64]:
    """A parameter's values, quantised or not."""
    tensor = exported.values(name) if name in exported.words else exported.tensors[name]
    return np.asarray(tensor.double().numpy())
