"""Plain modules: a network without what training put on it, and words put into a network."""

import copy
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from adapt.distributed.sharding import is_sharded
from adapt.execution.reduced_layer import ReducedLayer
from adapt.export.exported import Exported


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the module itself, without the wrappers of torch.compile and DistributedDataParallel.

    Raises:
        TypeError: it is no module.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    while isinstance(module, nn.parallel.DistributedDataParallel) or hasattr(module, "_orig_mod"):
        inner = module.module if isinstance(module, nn.parallel.DistributedDataParallel) else module._orig_mod
        assert isinstance(inner, nn.Module)
        module = inner
    return module


def plain_copy(module: nn.Module, *, without: Iterable[object] = ()) -> nn.Module:
    """Return a copy on the CPU in evaluation mode, without the hooks and forwards that training adds to modules.

    Args:
        module: the module.
        without: objects to which the module may refer although they are no part of it; the copy has None instead.

    Raises:
        NotImplementedError: a weight is spread over processes.
    """
    for name, parameter in module.named_parameters():
        if is_sharded(parameter):
            raise NotImplementedError(f"{name} is spread over processes: gather the weights in one process first")
    memo: dict[int, Any] = {id(thing): None for thing in without}
    for part in module.modules():
        # A weight that pruning computed in the latest pass has a graph, with which torch copies no tensor.
        computed = [value for value in vars(part).values() if isinstance(value, Tensor) and not value.is_leaf]
        memo |= {id(value): value.detach().clone() for value in computed}
    copied = copy.deepcopy(module, memo).cpu().eval()
    for parameter in copied.parameters():
        parameter.grad = None
    for part in copied.modules():
        if isinstance(part.__dict__.get("forward"), ReducedLayer):
            del part.__dict__["forward"]
        for attribute, hooks in list(vars(part).items()):
            if attribute.endswith("_hooks") and hooks:
                _remove_ours(part, hooks)
    return copied


def _remove_ours(module: nn.Module, hooks: dict[int, Any]) -> None:
    for key, hook in list(hooks.items()):
        owner = getattr(hook, "__self__", hook)
        if type(owner).__module__.startswith("adapt."):
            del hooks[key]
            # "with keywords" and "always called" are noted under the same key.
            for name, noted in vars(module).items():
                if name.startswith("_forward_") and isinstance(noted, dict) and noted.get(key) is True:
                    del noted[key]


def structured(exported: Exported, module: nn.Module) -> Exported:
    """Return a captured network with this architecture.

    Raises:
        TypeError: it is no module.
        ValueError: the module is of another network.
    """
    structure = plain_copy(unwrapped(module))
    state: dict[str, Tensor] = {**exported.tensors, **{name: exported.values(name) for name in exported.words}}
    state |= {name: state[first] for name, first in exported.aliases.items()}
    _require_same(structure.state_dict(), state)
    require_layers(structure, exported.sites)
    structure.load_state_dict(state)
    return replace(exported, structure=structure)


def _require_same(present: dict[str, Any], state: dict[str, Tensor]) -> None:
    missing, surplus = sorted(set(present) - set(state)), sorted(set(state) - set(present))
    if missing or surplus:
        parts = (("lacks", missing), ("also holds", surplus))
        found = " and ".join(
            f"{word} {', '.join(names[:4])}{', …' * (len(names) > 4)}" for word, names in parts if names
        )
        raise ValueError(f"the module is not the network that was captured, which {found}")
    for name, tensor in state.items():
        like = present[name]
        if not isinstance(like, Tensor) or like.shape != tensor.shape or like.dtype != tensor.dtype:
            kind = f"{like.dtype} {list(like.shape)}" if isinstance(like, Tensor) else type(like).__name__
            raise ValueError(
                f"{name} is {kind} in the module, but {tensor.dtype} {list(tensor.shape)} in what was captured"
            )


def require_layers(structure: nn.Module, sites: Iterable[str]) -> None:
    """Refuse formats of the activations of layers that the module does not have.

    Raises:
        ValueError: there is no such layer.
    """
    paths = {path for path, _ in structure.named_modules()}
    for name in sites:
        path, _, end = name.rpartition(".")
        if end not in ("input", "output") or path not in paths:
            raise ValueError(f"there is a format for {name}, but the module has no such layer: pass the trained one")
