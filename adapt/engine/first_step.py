"""Detect, up to its first step, an optimizer whose steps the hooks cannot follow."""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from adapt import user_warnings
from adapt.distributed.sharding import local
from adapt.layers.hooks import WeakHook
from adapt.layers.optimizers import check_callers


class FirstStep:
    """Watches one parameter across backward passes, and checks who calls the first step.

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
        """Check the parameter after every backward pass, until `begin` or `forget`."""
        self._handle = self._parameter.register_post_accumulate_grad_hook(WeakHook(self._look))  # type: ignore[no-untyped-call]

    def begin(self) -> None:
        """Check who called `step`, if this is the first step.

        Raises:
            NotImplementedError: another optimizer did, which may write weights itself.
        """
        if self._handle is not None:
            check_callers(self._optimizer)
            self.forget()

    def forget(self) -> None:
        """Stop watching."""
        if self._handle is not None:
            self._handle.remove()
        self._handle = self._values = None

    @torch.no_grad()
    def _look(self, parameter: Tensor) -> None:
        values = local(parameter).detach().clone()
        # A single change may be the user's own, such as loading a state.
        self._changes += self._values is not None and not torch.equal(values, self._values)
        self._values = values
        if self._changes == 2:
            kind = type(self._optimizer).__name__
            user_warnings.warn(
                f"{self._name} changed between backward passes, but no step of the {kind} that has the controller was "
                "seen, so no format can move: call its step(), or attach to the optimizer whose step() is called"
            )
            self.forget()
