"""The update of torch's SGD, taken over: one walk through memory does it and the rounding that follows."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from adapt.distributed.sharding import is_sharded
from adapt.layers.layering import updates_in_place


class _Row(NamedTuple):
    """A row of the rates of `Update`."""

    rate: float
    sign: float
    decay: float
    momentum: float
    kept: float
    nesterov: float


class Update(NamedTuple):
    """An update of some parameters: see `adapt.kernels.Kernels.descend_`.

    Attributes:
        rates: float32 [parameters, 6], a row (rate, sign, decay, momentum, kept, nesterov) for each; the rate
            is 0 where there is no gradient.
        buffers: of momentum, laid out as the parameters; None where there is none, or no gradient.
    """

    rates: NDArray[np.float32]
    buffers: list[Tensor | None]


TakeOver = Callable[[Sequence[Tensor | None]], Update | None]
"""Answers the update that an optimizer would make of some parameters with these gradients, if another may make it."""


_NOTHING: dict[str, Any] = {}
_IDLE = _Row(0.0, 1.0, 0.0, 0.0, 0.0, 0.0)


class Descent:
    """Does what `torch.optim.SGD` would do to some of its parameters, where nobody could tell but by the time it takes.

    The optimizer's groups, and its state with the buffers of momentum, stay what they are to it. Products and sums are
    rounded one by one; torch fuses some of them, which ones depends on its build and the place in the tensor, so the
    last bits differ: of processes that train together all should have hooks that watch the update, or none. A gradient
    keeps its value, where otherwise it would become what the optimizer sees.

    Args:
        optimizer: the optimizer.
        parameters: whose update to take over.
        is_watched: whether someone else looks at the gradients, or at what the update makes of them, in its course.
    """

    def __init__(self, optimizer: Optimizer, parameters: Sequence[Tensor], is_watched: Callable[[], bool]) -> None:
        self._optimizer, self._parameters, self._is_watched = optimizer, parameters, is_watched
        # What a derived class, or a tensor's, makes of a step is not known.
        plain = all(type(p) in (Tensor, nn.Parameter) or is_sharded(p) for p in parameters)
        self._is_known = isinstance(optimizer, SGD) and updates_in_place(optimizer) and plain
        self._hidden: list[tuple[Tensor, Tensor]] = []

    def take_over(self, gradients: Sequence[Tensor | None]) -> Update | None:
        """The step that the optimizer is about to take with these gradients, or None if it must take it by itself.

        Who asks has to take the step: buffers of momentum that the optimizer would begin are there then.
        """
        if not self._is_known or self._is_watched() or self._may_be_skipped():
            return None
        groups = self._optimizer.param_groups
        if not all(_is_at_hand(group["lr"]) and _is_at_hand(group["weight_decay"]) for group in groups):
            return None
        # Groups are lists that anyone may change.
        rows = {id(p): row for group, row in zip(groups, map(_row, groups), strict=True) for p in group["params"]}
        if len(rows) < sum(len(group["params"]) for group in groups):
            # What is there twice is updated twice.
            return None
        state, begun = self._optimizer.state, []
        buffers: list[Tensor | None] = [None] * len(gradients)
        rates = [_IDLE] * len(gradients)
        for i, (parameter, gradient) in enumerate(zip(self._parameters, gradients, strict=True)):
            if gradient is None:
                continue
            if id(parameter) not in rows:
                return None
            rates[i] = rows[id(parameter)]
            if not rates[i].momentum:
                continue
            buffers[i] = buffer = state.get(parameter, _NOTHING).get("momentum_buffer")
            if buffer is None:
                begun.append(i)
            elif not _are_alike(buffer, parameter):
                return None
        if begun:
            self._order_state()
        for i in begun:
            # The first direction goes in whole, without dampening.
            rates[i] = rates[i]._replace(kept=1.0)
            parameter = self._parameters[i]
            buffers[i] = state[parameter]["momentum_buffer"] = torch.zeros_like(parameter, requires_grad=False)
        return Update(np.array(rates, np.float32), buffers)

    def _order_state(self) -> None:
        """Begin the optimizer's state in the order in which it would."""
        for group in self._optimizer.param_groups:
            for parameter in group["params"] if group["momentum"] else ():
                if parameter.grad is not None:
                    self._optimizer.state[parameter]

    def hide(self) -> None:
        """Let the optimizer find no gradients of these parameters, until `show`. They count as used."""
        self._hidden = [(p, p.grad) for p in self._parameters if p.grad is not None]
        for parameter, _ in self._hidden:
            parameter.grad = None

    def show(self) -> None:
        """Give the parameters their gradients back."""
        for parameter, gradient in self._hidden:
            parameter.grad = gradient
        self.forget()

    def forget(self) -> None:
        """What is hidden is of an update that an exception cut short: nobody shall find it any more."""
        self._hidden = []

    def _may_be_skipped(self) -> bool:
        """Whether a scaler may have a fused optimizer skip the step."""
        found_inf = getattr(self._optimizer, "found_inf", None)
        return found_inf is not None and (found_inf.device.type != "cpu" or bool(found_inf))


def _is_at_hand(value: float | Tensor) -> bool:
    """Whether reading a hyperparameter waits for no device, and nobody wants its gradient."""
    return not isinstance(value, Tensor) or (value.device.type == "cpu" and not value.requires_grad)


def _row(group: dict[str, Any]) -> _Row:
    """The row of `Update.rates` of a group's parameters."""
    sign = -1.0 if group["maximize"] else 1.0
    kept, nesterov = 1 - group["dampening"], float(group["nesterov"])
    return _Row(-float(group["lr"]), sign, float(group["weight_decay"]), group["momentum"], kept, nesterov)


def _are_alike(buffer: Tensor, parameter: Tensor) -> bool:
    """Whether a buffer can be walked beside its parameter, on each process that has a piece of it."""
    return (
        buffer.dtype == parameter.dtype
        and buffer.device == parameter.device
        and buffer.stride() == parameter.stride()
        and getattr(buffer, "placements", None) == getattr(parameter, "placements", None)
    )
