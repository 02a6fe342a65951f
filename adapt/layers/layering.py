"""Which parameters are layers, and under what names."""

from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from adapt.distributed import sharding

Parameters = nn.Module | Mapping[str, Tensor] | Iterable[tuple[str, Tensor]] | Iterable[Tensor]
Choice = Callable[[str, Tensor], bool]

_ENGINES = {
    "deepspeed": "DeepSpeed",
    "fairscale": "FairScale",
    "horovod": "Horovod",
    "megatron": "Megatron",
    "torch.distributed.optim": "torch.distributed.optim",
}
"""Packages whose optimizers move weights or gradients themselves, where hooks on `step()` do not see it."""

_FLATTENERS = {
    "_is_flat_param": "FullyShardedDataParallel (FSDP1)",
    "_fsdp_flattened": "FullyShardedDataParallel (FSDP1)",
    "ds_id": "DeepSpeed ZeRO-3",
}
"""Attributes by which engines mark parameters that they cut without regard to layers."""

_BIASES = {(0, torch.float32), (1, torch.float32)}


def is_matrix(name: str, parameter: Tensor) -> bool:
    """The default choice of layers: weights with two dimensions or more, so no biases and no norm parameters."""
    return parameter.ndim >= 2


def plain_names(names: Iterable[str]) -> dict[str, str]:
    """Parameters' names → the same without what torch.compile, DistributedDataParallel or averaging wrapped around all.

    Where only some begin with "module.", that is an attribute of the model's own.
    """
    plain = {name: name.replace("_orig_mod.", "") for name in names}
    wrapped = all(name.startswith("module.") for name in plain.values())
    return {name: short.removeprefix("module.") if wrapped else short for name, short in plain.items()}


def plain_name(name: str) -> str:
    """One parameter's name without what was wrapped around its model."""
    return plain_names([name])[name]


def owners(module: nn.Module, kinds: tuple[type[nn.Module], ...], weights: Container[int]) -> Iterator[tuple[str, Any]]:
    """The modules of these kinds whose weight is one of some parameters, with the weight's plain name by this path.

    Args:
        weights: the parameters' identities.
    """
    plain = plain_names(name for name, _ in module.named_parameters(remove_duplicate=False))
    for path, owner in module.named_modules():
        weight = owner._parameters.get("weight")
        if isinstance(owner, kinds) and weight is not None and id(weight) in weights:
            yield plain[f"{path}.weight" if path else "weight"], owner


def named(params: Parameters) -> dict[str, Tensor]:
    """Name every parameter: as the module does, as given, or by position where there is no name.

    Raises:
        TypeError: `params` is nothing of the kind, or holds something that is no tensor.
        ValueError: two parameters have one name.
    """
    if isinstance(params, Tensor):
        raise TypeError(
            "params must be a module, named parameters or parameters, got a single tensor: wrap it in a list"
        )
    pairs: Iterable[object]
    if isinstance(params, nn.Module):
        pairs = params.named_parameters()
    elif isinstance(params, Mapping):
        pairs = params.items()
    elif isinstance(params, Iterable):
        pairs = params
    else:
        raise TypeError(f"params must be a module, named parameters or parameters, got {type(params).__name__}")
    found: list[tuple[str, Tensor]] = []
    for position, pair in enumerate(pairs):
        name, parameter = pair if isinstance(pair, tuple) and len(pair) == 2 else (f"parameter_{position}", pair)
        if not isinstance(name, str) or not isinstance(parameter, Tensor):
            raise TypeError(
                f"params must hold parameters or (name, parameter) pairs, got {type(pair).__name__} at {position}"
                + (": make the optimizer of these groups and use adapt.attach" if isinstance(pair, dict) else "")
            )
        found.append((name, parameter))
    plain = plain_names(name for name, _ in found)
    result: dict[str, Tensor] = {}
    known: set[int] = set()
    for name, parameter in found:
        name = plain[name]
        if result.get(name, parameter) is not parameter:
            raise ValueError(f"params names two parameters {name!r}: give each its own name")
        # A tied parameter goes by its first name.
        if id(parameter) not in known:
            known.add(id(parameter))
            result[name] = parameter
    return result


def check_optimizer(optimizer: Optimizer) -> None:
    """Refuse what moves the weights in a way that masters cannot follow.

    Raises:
        TypeError: `optimizer` is no torch optimizer.
        ValueError: it evaluates the loss several times in a step, or moves the weights between steps.
        NotImplementedError: it belongs to an engine that keeps weights or gradients for itself.
    """
    for kind in type(optimizer).__mro__:
        for package, engine in _ENGINES.items():
            if f"{kind.__module__}.".startswith(f"{package}."):
                raise NotImplementedError(
                    f"optimizer {kind.__name__} of {engine} moves weights or gradients where masters cannot follow: "
                    "use a plain torch optimizer with DistributedDataParallel or fully_shard (FSDP2)"
                )
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    kind = type(optimizer)
    if isinstance(optimizer, torch.optim.LBFGS) or (hasattr(kind, "first_step") and hasattr(kind, "second_step")):
        raise ValueError(
            f"optimizer {kind.__name__} evaluates the loss several times in one step, so all but its first forward "
            "pass would run on float32 masters: use one that evaluates once, such as SGD or AdamW"
        )
    if hasattr(kind, "train") and hasattr(kind, "eval"):
        raise ValueError(
            f"optimizer {kind.__name__} moves the weights between its steps, in train() and eval(), where masters "
            "cannot follow: use one that moves them in step() alone, such as SGD or AdamW"
        )


def updates_in_place(optimizer: Optimizer) -> bool:
    """Whether all that moves a parameter is `step()`, by operations in place on what it finds in the parameter.

    Known of torch's own optimizers and ours; any other may keep views of the parameters, or put new tensors into them.
    """
    known = type(optimizer).__module__.startswith(("torch.optim.", "adapt."))
    return known and not any(group.get("differentiable") for group in optimizer.param_groups)


def optimized(optimizer: Optimizer) -> Iterator[Tensor]:
    """Every parameter of the optimizer, group by group."""
    for group in optimizer.param_groups:
        yield from group["params"]


def check_layer(name: str, parameter: Tensor) -> None:
    """Refuse a weight that cannot have a float32 master.

    Raises:
        TypeError: the weight is not float32, or has no values.
        NotImplementedError: the weight is spread over processes in another way than by rows.
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
    """Refuse layers that lie in the same memory, as weights tied by their `.data` do: their masters would part.

    Raises:
        ValueError: two do, wholly or in part.
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
    """Refuse a module whose forward pass would write into its layer's weight.

    Raises:
        ValueError: an embedding has max_norm.
    """
    names = {id(parameter): name for name, parameter in layers.items()}
    for owner in () if module is None else module.modules():
        if (
            isinstance(owner, nn.Embedding | nn.EmbeddingBag)
            and owner.max_norm is not None
            and id(owner.weight) in names
        ):
            raise ValueError(
                f"{names[id(owner.weight)]} belongs to an embedding with max_norm={owner.max_norm}, which takes the "
                "weights off their grid in every forward pass: make it without max_norm, or leave it out with `layers`"
            )


def choose(
    optimizer: Optimizer, parameters: Mapping[str, Tensor], choice: Choice, frozen: Collection[str] = ()
) -> dict[str, Tensor]:
    """Answer the layers: the trainable parameters of the optimizer that `choice` takes, and those `frozen`, by name.

    Raises:
        TypeError: a parameter has no shape yet.
        ValueError: the optimizer holds parameters that `parameters` does not name, no layer is left, or two share
            memory.
        NotImplementedError: an engine cut the parameters without regard to layers.
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    members = list(optimized(optimizer))
    for parameter in members:
        for mark, engine in _FLATTENERS.items():
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
            "(or none that `layers` takes)"
        )
    for name, parameter in layers.items():
        check_layer(name, parameter)
    check_memory(layers)
    if len({parameter.device for parameter in layers.values()}) > 1:
        raise ValueError("params lie on several devices: attach one optimizer for each device")
    return layers


def followers(
    parameters: Mapping[str, Tensor], layers: Sequence[str], optimizer: Optimizer
) -> dict[str, tuple[Tensor, int]]:
    """Answer the trainable biases and norm parameters of the optimizer, each with the index of the layer that it
    follows: the one before it in the order of the names, or the first."""
    inside = {id(parameter) for parameter in optimized(optimizer)}
    found: dict[str, tuple[Tensor, int]] = {}
    leader = 0
    for name, parameter in parameters.items():
        if name in layers:
            leader = layers.index(name)
        elif id(parameter) in inside and parameter.requires_grad and (parameter.ndim, parameter.dtype) in _BIASES:
            found[name] = (parameter, leader)
    return found
