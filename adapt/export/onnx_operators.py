"""Parts of a network that `torch.onnx.export` turns into exactly the operators that we choose.

They replace modules in a copy of the network that is exported; then torch only needs the shapes of their results.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapt.numerics.format import Format

UNSIGNED_ZERO = 128
"""The word of uint8 that stands for 0 where values are signed: ONNX Runtime may fail to load int8 activations."""


def operator(name: str, inputs: tuple[Tensor, ...], like: Tensor, dtype: torch.dtype, **attributes: Any) -> Tensor:
    """Put one ONNX operator into the graph, whose output has the shape of `like`."""
    from torch.onnx import ops  # from torch 2.8 on

    result: Tensor = ops.symbolic(name, inputs, attributes, dtype=dtype, shape=like.shape)
    return result


class Words(nn.Module):
    """A parametrisation: the parameter is its integer words, followed by a DequantizeLinear.

    Args:
        words: the integer words in the shape of the parameter.
        step: float32, [] or, one for each channel along `axis`, [channels].
        axis: the dimension of the channels, or None.
        groups: of a transposed convolution whose channels are counted group by group. DequantizeLinear has one axis, so
            that these words are stored in the order of `by_channel`.
    """

    words: Tensor
    step: Tensor
    zero: Tensor

    def __init__(self, words: Tensor, step: Any, axis: int | None, groups: int = 1) -> None:
        super().__init__()
        self.axis, self.groups = axis if groups == 1 else 0, groups
        self.register_buffer("words", by_channel(words, groups).clone())
        self.register_buffer("step", torch.from_numpy(np.array(step, np.float32)))
        self.register_buffer("zero", torch.zeros(self.step.shape, dtype=words.dtype))

    def refine(self, factor: int) -> None:
        """Express the same values in steps that are `factor` times finer; words and steps stay exact."""
        self.words, self.step = self.words * factor, self.step / factor

    def forward(self, original: Tensor) -> Tensor:
        """word·step, in the shape of the parameter."""
        if not torch.compiler.is_exporting():
            return original
        axis = {} if self.axis is None else {"axis": self.axis}
        values = operator("DequantizeLinear", (self.words, self.step, self.zero), self.words, torch.float32, **axis)
        return by_channel(values, self.groups)


def by_channel(words: Tensor, groups: int) -> Tensor:
    """Return a transposed convolution's [groups · in, out, …] as [groups · out, in, …], or the other way round."""
    if groups == 1:
        return words
    return words.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)  # type: ignore[no-untyped-call,no-any-return]


class LinearQuantization(nn.Module):
    """Rounds activations by QuantizeLinear and DequantizeLinear: words of up to 8 bits in uint8, others in 16 bits.

    Words shorter than 8 bits are clipped as integers, which ONNX Runtime fuses, unlike a Clip before QuantizeLinear;
    it has no Clip of 16-bit words. Equals `adapt.export.rounding.Rounding` where steps are powers of two; others divide
    by the step instead of multiplying by its reciprocal.

    Args:
        form: the format, one for the whole tensor, of 2 to 16 bits.
    """

    step: Tensor
    zero: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, form: Format) -> None:
        super().__init__()
        self.short, signed = int(form.word_length) <= 8, bool(form.signed)
        self.dtype = torch.uint8 if self.short else torch.int16 if signed else torch.uint16
        zero = UNSIGNED_ZERO if self.short and signed else 0
        words, held = (int(form.low) + zero, int(form.high) + zero), torch.iinfo(self.dtype)
        self.clips = words != (held.min, held.max)
        ends = words if self.short else (float(form.minimum), float(form.maximum))
        low, high = torch.tensor(ends, dtype=self.dtype if self.short else torch.float32)
        self.register_buffer("step", torch.tensor(float(form.step)))
        self.register_buffer("zero", torch.tensor(zero, dtype=self.dtype))
        self.register_buffer("low", low.clone())
        self.register_buffer("high", high.clone())

    def forward(self, x: Tensor) -> Tensor:
        """Q(x), of any shape."""
        if self.clips and not self.short:
            x = operator("Clip", (x, self.low, self.high), x, torch.float32)
        words = operator("QuantizeLinear", (x, self.step, self.zero), x, self.dtype)
        if self.clips and self.short:
            words = operator("Clip", (words, self.low, self.high), x, self.dtype)
        return operator("DequantizeLinear", (words, self.step, self.zero), x, torch.float32)


class AddedBias(nn.Module):
    """Adds a bias by an operator of its own."""

    bias: Tensor

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """x plus the bias, which must broadcast to x."""
        return x + self.bias


class BatchNorm(nn.Module):
    """Batch normalisation in evaluation as torch computes it: x·α + β, rounded once.

    torch's kernel uses fused multiply-adds, while ONNX's BatchNormalization of float32 rounds twice and so occasionally
    moves a value across a rounding threshold. float64 holds the product of two float32 numbers. α and β come from
    torch, which computes them from γ, β, μ and σ² in an order of its own; the operator gets mean 0 and variance 1.

    Args:
        norm: a BatchNorm1d, BatchNorm2d or BatchNorm3d with running statistics.
    """

    scale: Tensor
    shift: Tensor
    mean: Tensor
    variance: Tensor

    def __init__(self, norm: Any) -> None:
        super().__init__()
        zero, one = torch.zeros_like(norm.running_var), torch.ones_like(norm.running_var)
        scale = F.batch_norm(one[None], zero, norm.running_var, norm.weight, zero, eps=norm.eps)[0]
        shift = F.batch_norm(zero[None], norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)[0]
        for name, values in (("scale", scale), ("shift", shift), ("mean", zero), ("variance", one)):
            self.register_buffer(name, values.double())

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channels, …] to the same."""
        inputs = (x.double(), self.scale, self.shift, self.mean, self.variance)
        return operator("BatchNormalization", inputs, x, torch.float64, epsilon=0.0).float()
