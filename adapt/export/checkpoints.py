"""Reading a network from a checkpoint: its weights as they were validated, and their formats."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from adapt import files
from adapt.engine.saved_formats import formats
from adapt.layers.naming import plain_names
from adapt.numerics import Format


def load_into(module: nn.Module, path: str | os.PathLike[str]) -> dict[str, Format]:
    """Load a module's weights, as evaluation saw them, from a checkpoint, and return their formats.

    The checkpoint may be that of a module around this one, such as a LightningModule: names are matched by their ends.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is no checkpoint, was saved without a controller, or holds no weights of this module.
    """
    content = files.load(path)
    found = formats(content)
    expected = module.state_dict()
    for state in _states(content):
        for prefix in _prefixes(state, expected):
            own = {name: state[prefix + name] for name in expected}
            if all(_fits(own[name], expected[name]) for name in expected):
                module.load_state_dict(own)
                return {name.removeprefix(prefix): form for name, form in found.items() if name.startswith(prefix)}
    raise ValueError(
        f"{os.fspath(path)} holds no state_dict of this {type(module).__name__}: save the module's beside the "
        "optimizer's, and pass an instance of the same network"
    )


def _states(tree: Any) -> Iterator[dict[str, Any]]:
    """Yield every mapping from names to tensors in a tree of mappings, outer ones first."""
    if isinstance(tree, Mapping):
        if any(isinstance(value, Tensor) for value in tree.values()):
            names = plain_names(name for name in tree if isinstance(name, str))
            yield {short: tree[name] for name, short in names.items()}
        for branch in tree.values():
            yield from _states(branch)


def _prefixes(state: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Return the prefixes that all expected names have in a state, the shortest first."""
    first = next(iter(expected), "")
    ends = {name.removesuffix(first) for name in state if name == first or name.endswith(f".{first}")}
    return sorted((p for p in ends if all(p + name in state for name in expected)), key=len)


def _fits(value: Any, like: Any) -> bool:
    if not isinstance(like, torch.Tensor):
        return not isinstance(value, Tensor)
    return isinstance(value, Tensor) and value.shape == like.shape
