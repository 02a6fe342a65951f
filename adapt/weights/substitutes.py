"""Parameters that hold other values for a while, so that a pass in between does not disturb a graph that is waiting."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adapt import torch_internals

_FIRST = 2**31
"""No write in place ever counts a parameter's version up to here."""

_versions = itertools.count(_FIRST)


class Substitutes:
    """Lends parameters other memory, and later gives them their own back, with the version that it had.

    A graph that was built before knows a parameter by its memory and version, so it goes on as if nothing had happened
    as soon as the parameter is back. While a parameter is away its version is one that no other moment has: a graph
    that was built meanwhile either has kept the lent memory (see `keeping_graphs`) or is refused by autograd.

    Args:
        parameters: the parameters.

    Attributes:
        are_possible: whether all parameters can change their memory; a subclass of Tensor may be more than its memory.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters = parameters
        self._own: dict[int, tuple[Tensor, int]] = {}
        self.are_possible = all(type(parameter) in (Tensor, nn.Parameter) for parameter in parameters)

    def holders(self, index: int) -> int:
        """How many others hold the parameter or its memory: graphs that wait for their backward pass, if any do.

        A graph that leads to the parameter refers to it until the graph is freed, but saves it only until backward.
        """
        parameter = self._parameters[index]
        views = torch_internals.memory_references(parameter) - 1
        references = torch_internals.references(parameter) - (2 if parameter.requires_grad else 1)
        return max(views, 0) + max(references, 0)

    @torch.inference_mode(False)
    def begin(self, index: int, values: Tensor) -> None:
        """Let a parameter be `values` until `end`."""
        parameter = self._parameters[index]
        self._own.setdefault(index, (parameter.data, parameter._version))
        parameter.data = values
        torch_internals.set_version(parameter, next(_versions))

    @torch.inference_mode(False)
    def end(self, index: int) -> None:
        """Give a parameter its own memory and version again, if it is away. An interrupted call can be repeated."""
        if index not in self._own:
            return
        parameter, (memory, version) = self._parameters[index], self._own[index]
        parameter.data = memory
        torch_internals.set_version(parameter, version)
        del self._own[index]


def keeping_graphs() -> Callable[[], None] | None:
    """Let graphs that are built from now on keep the lent memory itself; return what ends that.

    Autograd saves a parameter as such, and would find in it what it holds by then. None where hooks on saved tensors
    are disabled, as in transforms of torch.func: such a graph is refused once the parameter is back.
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
    # A tensor that kept itself would never be freed. Of lent memory nobody but this graph knows by the time of its
    # backward pass; everything else is checked as autograd would.
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
