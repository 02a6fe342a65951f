"""Names of parameters: those that their module gives them, without the prefixes of wrappers."""

from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

Parameters = (
    nn.Module | Mapping[str, Tensor] | Iterable[tuple[str, Tensor]] | Iterable[Tensor] | Iterable[dict[str, Any]]
)
"""A module, or its parameters, with or without names, or an optimizer's groups of these."""


def plain_names(names: Iterable[str]) -> dict[str, str]:
    """Return each parameter's name without the prefixes of torch.compile, DistributedDataParallel or weight averaging.

    If only some names begin with "module.", it is an attribute of the model itself.
    """
    plain = {name: name.replace("_orig_mod.", "") for name in names}
    wrapped = all(name.startswith("module.") for name in plain.values())
    return {name: short.removeprefix("module.") if wrapped else short for name, short in plain.items()}


def plain_name(name: str) -> str:
    """Return one parameter's name without the prefixes of wrappers."""
    return plain_names([name])[name]


def owners(module: nn.Module, kinds: tuple[type[nn.Module], ...], weights: Container[int]) -> Iterator[tuple[str, Any]]:
    """Yield the modules of these kinds whose weight is among the given ones, each with its weight's plain name.

    Args:
        module: the module to search.
        kinds: classes of modules.
        weights: the weights' ids.
    """
    plain = plain_names(name for name, _ in module.named_parameters(remove_duplicate=False))
    for path, owner in module.named_modules():
        weight = owner._parameters.get("weight")
        if isinstance(owner, kinds) and weight is not None and id(weight) in weights:
            yield plain[joined(path, "weight")], owner


def named(params: Parameters) -> dict[str, Tensor]:
    """Return every parameter by its name: the module's or group's, the given one, or else its position.

    Raises:
        TypeError: `params` is something else, or holds something that is not a tensor.
        ValueError: two parameters have the same name.
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
        pairs = _flattened(params)
    else:
        raise TypeError(f"params must be a module, named parameters or parameters, got {type(params).__name__}")
    found: list[tuple[str, Tensor]] = []
    for position, pair in enumerate(pairs):
        name, parameter = pair if isinstance(pair, tuple) and len(pair) == 2 else (f"parameter_{position}", pair)
        if not isinstance(name, str) or not isinstance(parameter, Tensor):
            kind = type(pair).__name__
            raise TypeError(f"params must hold parameters, (name, parameter) pairs or groups, got {kind} at {position}")
        found.append((name, parameter))
    plain = plain_names(name for name, _ in found)
    result: dict[str, Tensor] = {}
    known: set[int] = set()
    for name, parameter in found:
        name = plain[name]
        if result.get(name, parameter) is not parameter:
            raise ValueError(f"params names two parameters {name!r}: give each its own name")
        # A tied parameter gets the first of its names.
        if id(parameter) not in known:
            known.add(id(parameter))
            result[name] = parameter
    return result


def _flattened(params: Iterable[object]) -> Iterator[object]:
    """Yield the entries of params, with those of optimizer groups in place of the groups."""
    for entry in params:
        if not (isinstance(entry, dict) and "params" in entry):
            yield entry
            continue
        members = entry["params"]
        members = [members] if isinstance(members, Tensor) else members
        yield from zip(entry["param_names"], members, strict=True) if "param_names" in entry else members


def joined(path: str, name: str) -> str:
    """Return "conv1.weight" for the module "conv1" and the name "weight"; the outermost module has the path ""."""
    return f"{path}.{name}" if path else name


def module_site(site: str) -> str:
    """Return "conv1.input" for the site "conv1.weight.input", which is named after its layer's weight."""
    weight, _, kind = site.rpartition(".")
    path, _, _ = weight.rpartition(".")
    return joined(path, kind)
