"""Weights that train well at low precision: fan-in truncated normal variance scaling."""

import math
from collections.abc import Iterator
from copy import deepcopy
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn, norm_except_dim
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.weight_norm import WeightNorm

from adapt.arguments import check_number
from adapt.layers.products import EMBEDDINGS, TRANSPOSED_CONVOLUTIONS

Module = TypeVar("Module", bound=nn.Module)

_LAYERS = (
    nn.Linear,
    nn.Bilinear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    *TRANSPOSED_CONVOLUTIONS,
    *EMBEDDINGS,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.MultiheadAttention,
)


@torch.no_grad()
def tnvs_(module: Module, scale: float = 0.5) -> Module:
    """AdaPT 3.1 and alg. 1 line 1, TNVS: W ~ N(0, σ = √(s/n)), truncated at ±√(3·s/n), with n the weight's fan-in.

    σ is the standard deviation of the normal distribution before truncation; that of the weights is 0.815·σ. Every
    trainable weight matrix of linear, convolution, transposed convolution, embedding, recurrent and attention layers is
    replaced, on its device, by draws from torch's global random stream. Biases, norm layers, frozen weights, an
    embedding's padding row and parameters of other layers stay as they are. A weight computed by weight norm or a
    parametrization is set through it; under spectral norm the weight's norm stays 1. If one weight cannot be set, none
    is changed.

    The fan-in is the number of inputs that one output sums: the size of weight[0] (for an embedding its width, the
    number of inputs of an output layer tied to it). In a transposed convolution of stride t, an output sums on average
    input channels/groups · kernel/t inputs.

    Args:
        module: the network, or a part of it.
        scale: s. The paper leaves it open; He's initialisation, √(2/fan-in), is s = 2.

    Returns:
        The module itself.

    Raises:
        TypeError: `module` is not a module, or `scale` is not a number.
        ValueError: `scale` is not positive and finite, the module has no such weight, a weight has no shape yet, or one
            is computed by something that cannot be inverted.
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
        if isinstance(layer, EMBEDDINGS) and layer.padding_idx is not None:
            drawn[layer.padding_idx] = weight[layer.padding_idx]
        norm = _weight_norms(layer).get(name)
        if norm is not None:
            magnitude, direction = getattr(layer, f"{name}_g"), getattr(layer, f"{name}_v")
            magnitude.copy_(norm_except_dim(direction.copy_(drawn), 2, norm.dim))
            norm(layer, ())
        elif is_parametrized(layer, name):
            setattr(layer, name, drawn.to(weight.dtype))
        else:
            weight.copy_(drawn)
    return module


def _weights(module: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Yield every trainable weight matrix once, with its layer and its name in it."""
    seen: set[int] = set()
    for layer in module.modules():
        if not isinstance(layer, _LAYERS):
            continue
        norms = _weight_norms(layer)
        for name, parameters in _sources(layer).items():
            identities = set(map(id, parameters))
            if "weight" not in name or seen & identities or not any(p.requires_grad for p in parameters):
                continue
            seen |= identities
            for parameter in parameters:
                if nn.parameter.is_lazy(parameter):
                    raise ValueError(f"{name} of {type(layer).__name__} has no shape yet: run one forward pass first")
            if name in norms:
                norms[name](layer, ())  # recomputes the weight, which may be stale, as after a move to a device
            weight = getattr(layer, name)
            if weight.ndim < 2 or not weight.numel():
                continue
            if is_parametrized(layer, name):
                _check_invertible(layer, name, weight)
            yield layer, name, weight


def _sources(layer: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Return, for each weight and bias of the layer, the parameters from which it is computed, maybe only itself."""
    sources = {name: [parameter] for name, parameter in layer.named_parameters(recurse=False)}
    if is_parametrized(layer):
        computed = cast(nn.ModuleDict, layer.parametrizations)
        sources |= {name: list(original.parameters()) for name, original in computed.items()}
    for name in _weight_norms(layer):
        if not {f"{name}_g", f"{name}_v"} <= sources.keys() & layer._parameters.keys():
            raise ValueError(
                f"{name} of {type(layer).__name__} has a weight norm whose own parameters are computed: initialise "
                "before they are pruned or parametrised"
            )
        sources[name] = sources.pop(f"{name}_g") + sources.pop(f"{name}_v")
    return sources


def _weight_norms(layer: nn.Module) -> dict[str, WeightNorm]:
    """Return the hooks of `torch.nn.utils.weight_norm`, which compute W = g·v/‖v‖ before forward, by weight name."""
    return {hook.name: hook for hook in layer._forward_pre_hooks.values() if isinstance(hook, WeightNorm)}


def _check_invertible(layer: Any, name: str, weight: Tensor) -> None:
    """Try on a copy whether a computed weight can be set: some parametrizations only fail then."""
    try:
        deepcopy(layer.parametrizations[name]).right_inverse(weight)
    except RuntimeError as error:
        raise ValueError(
            f"{name} of {type(layer).__name__} has a parametrization that cannot be inverted to set it ({error}): "
            "initialise before registering the parametrization"
        ) from error


def _fan_in(layer: Any, weight: Tensor) -> float:
    if isinstance(layer, TRANSPOSED_CONVOLUTIONS):
        taps = math.prod(max(size / step, 1) for size, step in zip(layer.kernel_size, layer.stride, strict=True))
        return weight.shape[0] / layer.groups * taps
    return weight[0].numel()
