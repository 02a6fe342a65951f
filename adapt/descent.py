"""The update of torch's SGD, taken over: one walk through memory does it and the rounding that follows."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim import optimizer as torch_optimizer

from adapt.layering import updates_in_place
from adapt.sharding import is_sharded


class Update(NamedTuple):
    """An update of some parameters: see `adapt.kernels.Kernels.descend_`.

    Attributes:
        rates: float32 [parameters, 6], a row (rate, sign, decay, momentum, kept, nesterov) for each.
        buffers: of momentum, laid out as the parameters; None where there is none, or no gradient.
    """

    rates: NDArray[np.float32]
    buffers: list[Tensor | None]


TakeOver = Callable[[Sequence[Tensor | None]], Update | None]
"""Answers the update that an optimizer would make of some parameters with these gradients, if another may make it."""


_NOTHING: dict[str, Any] = {}


class Descent:
    """Does what `torch.optim.SGD` would do to some of its parameters, where nobody could tell but by the time it takes.

    The optimizer's groups, and its state with the buffers of momentum, stay what they are to it. Products and sums are
    rounded one by one; torch fuses some of them, which ones depends on its build and the place in the tensor, so the
    last bits differ. A gradient keeps its value, where otherwise it would become what the optimizer sees.

    Args:
        optimizer: the optimizer.
        parameters: whose update to take over.
    """

    def __init__(self, optimizer: Optimizer, parameters: Sequence[Tensor]) -> None:
        self._optimizer, self._parameters = optimizer, parameters
        at = {id(p): index for index, group in enumerate(optimizer.param_groups) for p in group["params"]}
        self._groups = [at[id(p)] for p in parameters]
        # What a derived class, or a tensor's, makes of a step is not known.
        plain = all(type(p) in (Tensor, nn.Parameter) or is_sharded(p) for p in parameters)
        self._is_known = isinstance(optimizer, SGD) and updates_in_place(optimizer) and plain
        self._hidden: list[tuple[Tensor, Tensor]] = []

    def take_over(self, gradients: Sequence[Tensor | None]) -> Update | None:
        """The step that the optimizer is about to take with these gradients, or None if it must take it by itself.

        Who asks has to take the step: buffers of momentum that the optimizer would begin are there then.
        """
        if not self._is_known or self._is_watched():
            return None
        groups = self._optimizer.param_groups
        if not all(_is_at_hand(group["lr"]) and _is_at_hand(group["weight_decay"]) for group in groups):
            return None
        state, begun = self._optimizer.state, []
        buffers: list[Tensor | None] = [None] * len(gradients)
        for i, (parameter, gradient) in enumerate(zip(self._parameters, gradients, strict=True)):
            if gradient is None or not groups[self._groups[i]]["momentum"]:
                continue
            buffers[i] = buffer = state.get(parameter, _NOTHING).get("momentum_buffer")
            if buffer is None:
                begun.append(i)
            elif not _are_alike(buffer, parameter):
                return None
        rows = [_row(group) for group in groups]
        rates = np.array([rows[group] for group in self._groups], np.float32)
        if begun:
            self._order_state()
        for i in begun:
            # The first direction goes in whole, without dampening.
            rates[i, 4] = 1
            parameter = self._parameters[i]
            buffers[i] = state[parameter]["momentum_buffer"] = torch.zeros_like(parameter, requires_grad=False)
        return Update(rates, buffers)

    def _order_state(self) -> None:
        """Begin the optimizer's state in the order in which it would."""
        for group in self._optimizer.param_groups:
            for parameter in group["params"] if group["momentum"] else ():
                if parameter.grad is not None:
                    self._optimizer.state[parameter]

    def hide(self) -> None:
        """Let the optimizer find no gradients of these parameters, until `show`."""
        self._hidden = [(p, p.grad) for p in self._parameters if p.grad is not None]
        for parameter, _ in self._hidden:
            parameter.grad = None

    def show(self) -> None:
        """Give the parameters their gradients back."""
        for parameter, gradient in self._hidden:
            parameter.grad = gradient
        self._hidden = []

    def _is_watched(self) -> bool:
        """Whether someone else comes between the controller and the update, or a scaler may have it skipped."""
        optimizer: Any = self._optimizer
        hooks: Any = torch_optimizer
        others = len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks) > 2
        everywhere = hooks._global_optimizer_pre_hooks or hooks._global_optimizer_post_hooks
        found_inf = getattr(optimizer, "found_inf", None)
        skips = found_inf is not None and (found_inf.device.type != "cpu" or bool(found_inf))
        return bool(others or everywhere or skips)


def _is_at_hand(value: float | Tensor) -> bool:
    """Whether reading a hyperparameter waits for no device, and nobody wants its gradient."""
    return not isinstance(value, Tensor) or (value.device.type == "cpu" and not value.requires_grad)


def _row(group: dict[str, Any]) -> tuple[float, ...]:
    """The row of `Update.rates` of a group's parameters."""
    sign = -1.0 if group["maximize"] else 1.0
    kept, nesterov = 1 - group["dampening"], float(group["nesterov"])
    return -float(group["lr"]), sign, float(group["weight_decay"]), group["momentum"], kept, nesterov


def _are_alike(buffer: Tensor, parameter: Tensor) -> bool:
    """Whether a buffer can be walked beside its parameter, on each process that has a piece of it."""
    return (
        buffer.dtype == parameter.dtype
        and buffer.device == parameter.device
        and buffer.stride() == parameter.stride()
        and getattr(buffer, "placements", None) == getattr(parameter, "placements", None)
    )
