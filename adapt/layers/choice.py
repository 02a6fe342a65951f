"""Which parameters are layers, and which of them can have a float32 master."""

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from adapt.distributed import sharding
from adapt.layers.optimizers import optimized
from adapt.layers.products import EMBEDDINGS

Choice = Callable[[str, Tensor], bool]

_SHARDING_MARKS = {
    "_is_flat_param": "FullyShardedDataParallel (FSDP1)",
    "_fsdp_flattened": "FullyShardedDataParallel (FSDP1)",
    "ds_id": "DeepSpeed ZeRO-3",
}
"""Attributes with which training engines mark parameters that they shard without regard to layers."""

_BIASES = {(0, torch.float32), (1, torch.float32)}


def check_choice(layers: object) -> None:
    """Check the user's choice of layers.

    Raises:
        TypeError: it is not a function.
    """
    if not callable(layers):
        raise TypeError(f"layers must be a function of (name, parameter), got {layers!r}")


def is_matrix(name: str, parameter: Tensor) -> bool:
    """Choose weights with at least two dimensions, so no biases or norm parameters: the default choice of layers."""
    return parameter.ndim >= 2


def check_layer(name: str, parameter: Tensor) -> None:
    """Check that a weight can have a float32 master.

    Raises:
        TypeError: the weight is not float32, or has no values.
        NotImplementedError: the weight is sharded over processes in another way than by rows.
    """
    if parameter.is_meta:
        raise TypeError(f"{name} is on the meta device and has no values yet: load or initialise the model first")
    sharding.check(name, parameter)
    if parameter.dtype != torch.float32:
        raise TypeError(
            f"{name} is {parameter.dtype}, but the optimizer must update a float32 master: keep the model in float32 "
            "(autocast may still compute in a shorter type), or leave the weight out with `layers`"
        )


def check_memory(layers: Mapping[str, Tensor]) -> None:
    """Check that no layers share memory, like weights tied through `.data`: their masters would diverge.

    Raises:
        ValueError: two layers share memory, wholly or in part.
    """
    spans = []
    for name, parameter in layers.items():
        piece = sharding.local(parameter)
        spans.append((piece.data_ptr(), piece.data_ptr() + piece.numel() * piece.element_size(), name))
    for (_, end, name), (start, _, other) in pairwise(sorted(span for span in spans if span[0] < span[1])):
        if start < end:
            raise ValueError(
                f"{name} and {other} share memory, but each would get a master of its own: make them one parameter "
                "(module.weight = other.weight), or leave one out with `layers`"
            )


def check_modules(module: nn.Module | None, layers: Mapping[str, Tensor]) -> None:
    """Check that no module's forward pass writes into its layer's weight.

    Raises:
        ValueError: an embedding has max_norm.
    """
    names = {id(parameter): name for name, parameter in layers.items()}
    for owner in () if module is None else module.modules():
        if isinstance(owner, EMBEDDINGS) and owner.max_norm is not None and id(owner.weight) in names:
            raise ValueError(
                f"{names[id(owner.weight)]} belongs to an embedding with max_norm={owner.max_norm}, which takes the "
                "weights off their grid in every forward pass: make it without max_norm, or leave it out with `layers`"
            )


def choose(
    optimizer: Optimizer, parameters: Mapping[str, Tensor], choice: Choice, frozen: Collection[str] = ()
) -> dict[str, Tensor]:
    """Return the layers by name: the optimizer's parameters that `choice` selects, trainable or in `frozen`.

    Raises:
        TypeError: a parameter has no shape yet.
        ValueError: the optimizer holds parameters that `parameters` does not name, there is no layer, or two layers
            share memory.
        NotImplementedError: a training engine sharded the parameters without regard to layers.
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    members = list(optimized(optimizer))
    for parameter in members:
        for mark, engine in _SHARDING_MARKS.items():
            if getattr(parameter, mark, None) is not None:
                raise NotImplementedError(
                    f"params are cut by {engine}, which leaves no layer whole: use fully_shard (FSDP2) instead"
                )
    strangers = sum(id(parameter) not in names for parameter in members)
    if strangers:
        raise ValueError(
            f"optimizer holds {strangers} of {len(members)} parameters that params does not name: "
            "pass the module, or the named parameters, that the optimizer was made for"
        )
    inside = {id(parameter) for parameter in members}
    for name, parameter in parameters.items():
        if id(parameter) in inside and isinstance(parameter, nn.parameter.UninitializedParameter):
            raise TypeError(f"{name} has no shape yet: run one forward pass through the lazy module first")
    layers = {
        name: parameter
        for name, parameter in parameters.items()
        if id(parameter) in inside and (parameter.requires_grad or name in frozen) and choice(name, parameter)
    }
    if not layers:
        raise ValueError(
            "params has no layer to quantise: no trainable parameter of the optimizer has two or more dimensions "
            "(or `layers` selects none)"
        )
    for name, parameter in layers.items():
        check_layer(name, parameter)
    check_memory(layers)
    if len({parameter.device for parameter in layers.values()}) > 1:
        raise ValueError("params lie on several devices: attach one optimizer for each device")
    return layers


def candidates(parameters: Mapping[str, Tensor], choice: Choice) -> list[str]:
    """Return the names of all parameters that `choice` selects, including frozen ones and those of other optimizers."""
    shaped = ((name, p) for name, p in parameters.items() if not isinstance(p, nn.parameter.UninitializedParameter))
    return [name for name, parameter in shaped if choice(name, parameter)]


def followers(
    parameters: Mapping[str, Tensor], layers: Sequence[str], optimizer: Optimizer, frozen: Collection[str] = ()
) -> dict[str, tuple[Tensor, int]]:
    """Return the trainable biases and norm parameters of the optimizer, each with the index of the layer it follows.

    This is the layer before it in the order of `parameters`, or the first layer. Parameters in `frozen` need not be
    trainable.
    """
    inside = {id(parameter) for parameter in optimized(optimizer)}
    found: dict[str, tuple[Tensor, int]] = {}
    leader = 0
    for name, parameter in parameters.items():
        if name in layers:
            leader = layers.index(name)
        elif (
            id(parameter) in inside
            and (parameter.requires_grad or name in frozen)
            and (parameter.ndim, parameter.dtype) in _BIASES
        ):
            found[name] = (parameter, leader)
    return found
