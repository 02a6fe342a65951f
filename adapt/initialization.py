"""Weights that train well at low precision: fan-in truncated normal variance scaling."""

import math
from collections.abc import Iterator
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from adapt.arguments import check_number

Module = TypeVar("Module", bound=nn.Module)

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAYERS = (
    nn.Linear,
    nn.Bilinear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    *_TRANSPOSED,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.MultiheadAttention,
)


@torch.no_grad()
def tnvs_(module: Module, scale: float = 0.5) -> Module:
    """AdaPT 3.1 and alg. 1 line 1, TNVS: W ~ N(0, σ = √(s/n)), truncated at ±√(3·s/n), n the weight's fan-in.

    σ is that of the normal distribution before it is truncated; the weights' own is 0.815·σ. Every trainable weight
    matrix of linear, convolution, transposed convolution, embedding, recurrent and attention layers is drawn anew, on
    its device, from torch's global random stream. Biases, norm layers, frozen weights, an embedding's padding row and
    parameters that belong to no such layer stay as they are.

    The fan-in is the number of inputs that one output sums: the size of weight[0] (for an embedding its width, which
    is what an output layer tied to it sums). In a transposed convolution of stride t, an output sums on average
    input channels/groups · kernel/t inputs.

    Args:
        module: the network, or the part of it that is to be initialised.
        scale: s. The paper leaves it open; √(2/fan-in), He's initialisation, is s = 2.

    Returns:
        The module itself.

    Raises:
        TypeError: `module` is no module, or `scale` no number.
        ValueError: `scale` is not positive and finite, the module has no such weight, or one has no shape yet.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    check_number("scale", scale)
    if not 0 < scale < math.inf:
        raise ValueError(f"scale must be positive and finite, got {scale}")
    weights = list(_weights(module))
    if not weights:
        raise ValueError(
            f"module {type(module).__name__} has no trainable weight of two or more dimensions to initialise"
        )
    for layer, name, weight in weights:
        variance = scale / _fan_in(layer, weight)
        drawn = torch.empty_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
        bound = math.sqrt(3 * variance)
        nn.init.trunc_normal_(drawn, std=math.sqrt(variance), a=-bound, b=bound)
        if isinstance(layer, nn.Embedding | nn.EmbeddingBag) and layer.padding_idx is not None:
            drawn[layer.padding_idx] = weight[layer.padding_idx]
        if is_parametrized(layer, name):
            setattr(layer, name, drawn.to(weight.dtype))
        else:
            weight.copy_(drawn)
    return module


def _weights(module: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Every trainable weight matrix once, with the layer and the name by which the layer reads it."""
    seen: set[int] = set()
    for layer in module.modules():
        if not isinstance(layer, _LAYERS):
            continue
        sources = {name: [parameter] for name, parameter in layer.named_parameters(recurse=False)}
        if is_parametrized(layer):
            computed = cast(nn.ModuleDict, layer.parametrizations)
            sources |= {name: list(original.parameters()) for name, original in computed.items()}
        for name, parameters in sources.items():
            identities = set(map(id, parameters))
            if "weight" not in name or seen & identities or not any(p.requires_grad for p in parameters):
                continue
            seen |= identities
            for parameter in parameters:
                if nn.parameter.is_lazy(parameter):
                    raise ValueError(f"{name} of {type(layer).__name__} has no shape yet: run one forward pass first")
            weight = getattr(layer, name)
            if weight.ndim >= 2 and weight.numel():
                yield layer, name, weight


def _fan_in(layer: Any, weight: Tensor) -> float:
    if isinstance(layer, _TRANSPOSED):
        taps = math.prod(max(size / step, 1) for size, step in zip(layer.kernel_size, layer.stride, strict=True))
        return weight.shape[0] / layer.groups * taps
    return weight[0].numel()
