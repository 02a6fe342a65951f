"""Noticing that an optimizer's steps cannot be followed, by what happens until the first of them."""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from adapt import user_warnings
from adapt.distributed.sharding import local
from adapt.layers.hooks import WeakHook
from adapt.layers.optimizers import check_callers


class FirstStep:
    """Watches one parameter from backward pass to backward pass, and the callers of the first step.

    Args:
        optimizer: the optimizer.
        name, parameter: a layer that it updates.
    """

    def __init__(self, optimizer: Optimizer, name: str, parameter: Tensor) -> None:
        self._optimizer, self._name, self._parameter = optimizer, name, parameter
        self._values: Tensor | None = None
        self._changes = 0
        self._handle: Any = None

    def watch(self) -> None:
        """Look at the parameter after every backward pass, until `begin` or `forget`."""
        self._handle = self._parameter.register_post_accumulate_grad_hook(WeakHook(self._look))  # type: ignore[no-untyped-call]

    def begin(self) -> None:
        """Check who makes the step that begins, if it is the first one.

        Raises:
            NotImplementedError: another optimizer does, and it may write weights itself.
        """
        if self._handle is not None:
            check_callers(self._optimizer)
            self.forget()

    def forget(self) -> None:
        """Watch no longer."""
        if self._handle is not None:
            self._handle.remove()
        self._handle = self._values = None

    @torch.no_grad()
    def _look(self, parameter: Tensor) -> None:
        values = local(parameter).detach().clone()
        # Once may be the user's own doing, as loading a state is.
        self._changes += self._values is not None and not torch.equal(values, self._values)
        self._values = values
        if self._changes == 2:
            kind = type(self._optimizer).__name__
            user_warnings.warn(
                f"{self._name} changed between backward passes, but no step of the {kind} that has the controller was "
                "seen, so no format can move: call its step(), or attach to the optimizer whose step() is called"
            )
            self.forget()
