"""Show each controller the losses that belong to its optimizer."""

from collections import deque
from collections.abc import Sequence

from torch import Tensor
from torch.optim import Optimizer

from adapt.engine.engine import Engine
from adapt.layers.optimizers import optimized

_LONGEST = 4096
"""Losses kept for an optimizer that has not stepped for long; older ones are dropped."""


class Losses:
    """Shows every controller the losses behind the gradients that its next step uses.

    With one optimizer these are all losses. With several, each loss is shown to the controllers of those optimizers
    whose gradients its backward pass changed, when they step. So the loss of a toggled optimizer reaches that one
    alone, and a loss that two optimizers share is shown to both. When gradients are cleared (set to None) without a
    step, their losses are dropped too.

    Args:
        optimizers: all optimizers of the module.
        controllers: the controllers of some of them.
    """

    def __init__(self, optimizers: Sequence[Optimizer], controllers: Sequence[Engine]) -> None:
        self._controllers = list(controllers)
        self._alone = len(optimizers) == 1
        self._waiting: list[deque[Tensor]] = [deque(maxlen=_LONGEST) for _ in controllers]
        self._before: list[list[tuple[Tensor | None, int]]] = []
        self._loss: Tensor | None = None

    def before_backward(self, loss: Tensor) -> None:
        """Take the loss of a micro-batch whose backward pass comes next, without accumulation's divisor."""
        for controller, waiting in zip(self._controllers, self._waiting, strict=True):
            if all(parameter.grad is None for parameter in optimized(controller.optimizer)):
                waiting.clear()
                controller.forget_losses()
            if self._alone:
                controller.observe(loss)
        if not self._alone:
            self._loss = loss.detach()
            self._before = [_gradients(controller.optimizer) for controller in self._controllers]

    def after_backward(self) -> None:
        """Keep the loss for the optimizers whose gradients the backward pass changed."""
        if self._loss is None:
            return
        for controller, waiting, before in zip(self._controllers, self._waiting, self._before, strict=True):
            after = _gradients(controller.optimizer)
            if any(now is not was or version != old for (now, version), (was, old) in zip(after, before, strict=True)):
                waiting.append(self._loss)
        self._loss, self._before = None, []

    def before_step(self, optimizer: Optimizer) -> None:
        """Show the losses kept for the optimizer that steps next."""
        for controller, waiting in zip(self._controllers, self._waiting, strict=True):
            if controller.optimizer is optimizer:
                while waiting:
                    controller.observe(waiting.popleft())


def _gradients(optimizer: Optimizer) -> list[tuple[Tensor | None, int]]:
    """Return each parameter's gradient with its version, which every write in place increases."""
    gradients = [parameter.grad for parameter in optimized(optimizer)]
    return [(gradient, 0 if gradient is None else gradient._version) for gradient in gradients]
