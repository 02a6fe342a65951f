"""Give parameters other memory for a while, so that a pass in between does not disturb a waiting graph."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adapt import torch_internals

_FIRST = 2**31
"""A version that in-place writes never reach."""

_versions = itertools.count(_FIRST)


class Substitutes:
    """Gives parameters other memory, and later their own back, with its version.

    A graph that was built before identifies a parameter by its memory and version, so it remains valid once the
    parameter is back. In the meantime the parameter has a unique version: a graph that is built then either keeps the
    substitute (see `keeping_graphs`) or is refused by autograd.

    Args:
        parameters: the parameters.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters = parameters
        self._own: dict[int, tuple[Tensor, int]] = {}
        self._past_holders: dict[int, int] = {}
        # A subclass of Tensor, as of a sharded parameter, may hold more than memory.
        self._are_possible = all(type(parameter) in (Tensor, nn.Parameter) for parameter in parameters)

    def are_needed(self, indices: Iterable[int] | None = None) -> bool:
        """Return whether a graph that waits for its backward pass may hold one of these parameters, or of all.

        False if the parameters cannot be given other memory. Graphs from before a parameter was last written do not
        count: autograd refuses them.
        """
        return any(holders > self._past_holders.get(i, 0) for i, holders in self._holders(indices))

    def count_holders(self, indices: Iterable[int] | None = None) -> None:
        """Count the present holders of these parameters, or of all, after the parameters have been written."""
        self._past_holders.update(self._holders(indices))

    def forget_holders(self) -> None:
        """Forget the holders that were counted."""
        self._past_holders.clear()

    def _holders(self, indices: Iterable[int] | None) -> Iterator[tuple[int, int]]:
        """Yield how many others, such as graphs that wait for backward, hold each of these parameters or its memory.

        A graph that leads to the parameter refers to it until the graph is freed, but saves it only until backward.
        """
        if not self._are_possible:
            return
        for i in range(len(self._parameters)) if indices is None else indices:
            parameter = self._parameters[i]
            views = torch_internals.memory_references(parameter) - 1
            references = torch_internals.references(parameter) - (2 if parameter.requires_grad else 1)
            yield i, max(views, 0) + max(references, 0)

    @torch.inference_mode(False)
    def begin(self, index: int, values: Tensor) -> None:
        """Make a parameter hold `values` until `end`."""
        parameter = self._parameters[index]
        self._own.setdefault(index, (parameter.data, parameter._version))
        parameter.data = values
        torch_internals.set_version(parameter, next(_versions))

    @torch.inference_mode(False)
    def end(self, index: int) -> None:
        """Give a parameter its own memory and version back. An interrupted call may repeat."""
        if index not in self._own:
            return
        parameter, (memory, version) = self._parameters[index], self._own[index]
        parameter.data = memory
        torch_internals.set_version(parameter, version)
        del self._own[index]


def keeping_graphs() -> Callable[[], None] | None:
    """Make graphs that are built from now on keep the substitute itself; return a function that ends this.

    Otherwise autograd would save the parameter, and find in it whatever it holds by then. Return None if hooks on saved
    tensors are disabled, as in transforms of torch.func: such a graph is refused once the parameter is back.
    """
    if not torch_internals.hooks_are_enabled():
        return None
    torch_internals.push_hooks(_pack, _unpack)

    def end() -> None:
        # An exception may have left other hooks above these.
        if torch_internals.may_be_on_top(_pack):
            torch_internals.pop_hooks()

    return end


def _pack(saved: Tensor) -> tuple[Tensor, int | None]:
    # Detached, because a tensor that saved itself would never be freed. A substitute needs no check: by the backward
    # pass, only this graph refers to it. Everything else is checked as autograd would.
    version = saved._version
    return saved.detach(), None if version >= _FIRST else version


def _unpack(packed: Any) -> Tensor:
    saved: Tensor = packed[0]
    if packed[1] is not None and saved._version != packed[1]:
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace operation: "
            f"a tensor of shape {list(saved.shape)} is at version {saved._version}, but version {packed[1]} was saved"
        )
    return saved
