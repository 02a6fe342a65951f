"""torch's SGD update fused with the rounding that follows it, in one pass through memory."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from adapt.distributed.sharding import is_sharded
from adapt.kernels import Update
from adapt.layers.optimizers import updates_in_place


class _Rates(NamedTuple):
    """One row of `Update.rates`."""

    rate: float
    sign: float
    decay: float
    momentum: float
    kept: float
    nesterov: float


TakeOver = Callable[[Sequence[Tensor | None]], Update | None]
"""Returns the update that an optimizer would make with these gradients, or None if the optimizer must make it."""

_NOTHING: dict[str, Any] = {}
_IDLE = _Rates(0.0, 1.0, 0.0, 0.0, 0.0, 0.0)


class FusedSGD:
    """Performs the step of `torch.optim.SGD` on some of its parameters, if only the speed can show it.

    The optimizer keeps its groups and its state, including momentum buffers. Here every product and sum is rounded to
    float32; torch fuses some of them, depending on its build and on the position in the tensor, so the last bits
    differ. Therefore either all processes that train together should have hooks that watch the update, or none.
    Gradients keep their values, unlike when the optimizer itself steps.

    Args:
        optimizer: the optimizer.
        parameters: the parameters whose update to perform.
        is_watched: returns whether another hook runs around the update and would see a difference.
    """

    def __init__(self, optimizer: Optimizer, parameters: Sequence[Tensor], is_watched: Callable[[], bool]) -> None:
        self._optimizer, self._parameters, self._is_watched = optimizer, parameters, is_watched
        # A subclass of SGD or of Tensor may step differently.
        plain = all(type(p) in (Tensor, nn.Parameter) or is_sharded(p) for p in parameters)
        self._is_known = isinstance(optimizer, SGD) and updates_in_place(optimizer) and plain
        self._hidden: list[tuple[Tensor, Tensor]] = []

    def take_over(self, gradients: Sequence[Tensor | None]) -> Update | None:
        """Return the update that the optimizer is about to make with these gradients; None if it must make it itself.

        The caller must perform this update: missing momentum buffers have been created.
        """
        if not self._is_known or self._is_watched() or self._may_be_skipped():
            return None
        groups = self._optimizer.param_groups
        if not all(_is_at_hand(group["lr"]) and _is_at_hand(group["weight_decay"]) for group in groups):
            return None
        # Read again in every step, because anyone may change the groups.
        rows = {id(p): row for group, row in zip(groups, map(_rates, groups), strict=True) for p in group["params"]}
        if len(rows) < sum(len(group["params"]) for group in groups):
            # A parameter is listed twice, and torch would update it twice.
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
            # A new buffer takes the first direction whole, without dampening.
            rates[i] = rates[i]._replace(kept=1.0)
            parameter = self._parameters[i]
            buffers[i] = state[parameter]["momentum_buffer"] = torch.zeros_like(parameter, requires_grad=False)
        return Update(np.array(rates, np.float32), buffers)

    def _order_state(self) -> None:
        """Create the optimizer's state entries in the same order as the optimizer would."""
        for group in self._optimizer.param_groups:
            for parameter in group["params"] if group["momentum"] else ():
                if parameter.grad is not None:
                    self._optimizer.state[parameter]

    def hide(self) -> None:
        """Hide these parameters' gradients from the optimizer until `show`: they have been used."""
        self._hidden = [(p, p.grad) for p in self._parameters if p.grad is not None]
        for parameter, _ in self._hidden:
            parameter.grad = None

    def show(self) -> None:
        """Give the parameters their gradients back."""
        for parameter, gradient in self._hidden:
            parameter.grad = gradient
        self.forget()

    def forget(self) -> None:
        """Drop hidden gradients: they belong to an update that an exception interrupted."""
        self._hidden = []

    def _may_be_skipped(self) -> bool:
        """Return whether a gradient scaler may make a fused optimizer skip the step."""
        found_inf = getattr(self._optimizer, "found_inf", None)
        return found_inf is not None and (found_inf.device.type != "cpu" or bool(found_inf))


def _is_at_hand(value: float | Tensor) -> bool:
    """Return whether a hyperparameter can be read without waiting for a device, and needs no gradient."""
    return not isinstance(value, Tensor) or (value.device.type == "cpu" and not value.requires_grad)


def _rates(group: dict[str, Any]) -> _Rates:
    """Return the row of `Update.rates` for a group's parameters."""
    sign = -1.0 if group["maximize"] else 1.0
    kept, nesterov = 1 - group["dampening"], float(group["nesterov"])
    return _Rates(-float(group["lr"]), sign, float(group["weight_decay"]), group["momentum"], kept, nesterov)


def _are_alike(buffer: Tensor, parameter: Tensor) -> bool:
    """Return whether a buffer is laid out like its parameter, including how both are sharded."""
    return (
        buffer.dtype == parameter.dtype
        and buffer.device == parameter.device
        and buffer.stride() == parameter.stride()
        and getattr(buffer, "placements", None) == getattr(parameter, "placements", None)
    )
