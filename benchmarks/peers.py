"""Other software for comparison: QPyTorch and brevitas if installed, torch's fake_quantize and plain eager torch.

QPyTorch compiles C++ when it is imported, so it needs a compiler and ninja.
"""

import math
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.networks import Network, Training, sgd

Batches = list[tuple[Tensor, Tensor]]
NOT_INSTALLED = "not installed"


@cache
def load(name: str) -> Any:
    """A peer's module, or the reason why it is not available."""
    if find_spec(name.partition(".")[0]) is None:
        return NOT_INSTALLED
    try:
        return import_module(name)
    except Exception as error:  # a failed compilation may raise anything
        return f"cannot be imported ({type(error).__name__})"


def quantisers(source: Tensor) -> dict[str, Callable[[], object] | str]:
    """Other ways to quantise a tensor to ⟨8, 6⟩: a function that returns a new tensor, or why it is not available."""
    step = 2.0**-6

    def eager() -> Tensor:
        return torch.floor(source / step + torch.rand_like(source)).clamp_(-128, 127).mul_(step)

    quant = load("qtorch.quant")
    return {
        "QPyTorch": quant
        if isinstance(quant, str)
        else lambda: quant.fixed_point_quantize(source, 8, 6, rounding="stochastic"),
        "fake_quantize (nearest)": lambda: torch.fake_quantize_per_tensor_affine(source, step, 0, -128, 127),
        "eager torch": eager,
    }


def qpytorch(network: Network, batches: Batches, *, activations: bool) -> Training | str:
    """Training with QPyTorch: weights quantised after each step; if asked, outputs and errors of each layer too."""
    quant, optim = load("qtorch.quant"), load("qtorch.optim")
    if isinstance(quant, str) or isinstance(optim, str):
        return quant if isinstance(quant, str) else str(optim)

    def rounded(x: Tensor) -> Tensor:
        return quant.fixed_point_quantize(x, 8, 6, rounding="stochastic")  # type: ignore[no-any-return]

    model = network.build(batches[0][0].device)
    if activations:
        number = import_module("qtorch").FixedPoint(8, 4)
        quantizer = quant.Quantizer(number, number, "stochastic", "stochastic")
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.register_forward_hook(lambda module, inputs, output: quantizer(output))
    return Training(model, optim.OptimLP(sgd(model), weight_quant=rounded), batches)


def brevitas(network: Network, batches: Batches) -> Training | str:
    """Training with brevitas: 8-bit weights and 8-bit inputs of every convolution and dense layer (W8A8)."""
    layers, quantizers = load("brevitas.nn"), load("brevitas.quant")
    if isinstance(layers, str) or isinstance(quantizers, str):
        return layers if isinstance(layers, str) else str(quantizers)
    model = network.build(batches[0][0].device)
    options = {"weight_bit_width": 8, "input_quant": quantizers.Int8ActPerTensorFloat}
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            bias = getattr(module, "bias", None) is not None
            if isinstance(module, nn.Conv2d):
                new = layers.QuantConv2d(
                    module.in_channels, module.out_channels, module.kernel_size,
                    stride=module.stride, padding=module.padding, bias=bias, **options,
                )  # fmt: skip
            elif isinstance(module, nn.Linear):
                new = layers.QuantLinear(module.in_features, module.out_features, bias=bias, **options)
            else:
                continue
            new.load_state_dict(module.state_dict(), strict=False)
            setattr(parent, name, new)
    if any(isinstance(module, nn.Conv2d) for module in model.modules()):
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Training(model, sgd(model), batches)


def push_down_by_histc(weights: Tensor, resolution: int, tolerance: float) -> int:
    """AdaPT alg. 3 the straightforward way: quantise for every candidate and compare histograms of `torch.histc`."""
    low, high = (value.item() for value in weights.aminmax())
    if low == high:
        return 2
    integer_bits = math.frexp(max(-low, high))[1] + 1
    n = weights.numel()
    original = (torch.histc(weights, resolution, low, high) + 1 / resolution) / (n + 1)
    failing, passing = 1, 32
    while passing - failing > 1:
        middle = (failing + passing) // 2
        bound = 2 ** (middle - 1)
        quantized = torch.fake_quantize_per_tensor_affine(weights, 2.0 ** (integer_bits - middle), 0, -bound, bound - 1)
        p = (torch.histc(quantized.clamp_(low, high), resolution, low, high) + 1 / resolution) / (n + 1)
        lost = float((p * (p / original).log2()).sum())
        failing, passing = (failing, middle) if lost <= tolerance else (middle, passing)
    return passing
