"""The losses of a step's micro-batches, and their mean."""

from collections.abc import Iterable
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from adapt.distributed import ranks


class MicroLosses:
    """The losses observed since the last step, one for each micro-batch. Tensors stay on the device."""

    def __init__(self) -> None:
        self._shown: list[Tensor | float] = []

    def __len__(self) -> int:
        return len(self._shown)

    def observe(self, loss: Tensor | float) -> None:
        """Add the loss of one more micro-batch.

        Raises:
            TypeError: the loss is neither a tensor nor a number.
            ValueError: the loss is a tensor with more than one element, or none.
        """
        if isinstance(loss, Tensor):
            if loss.numel() != 1:
                raise ValueError(f"loss must be a single number, got shape {tuple(loss.shape)}: reduce it first")
            # Copied, because the caller may change the loss in place, e.g. divide it by the number of micro-batches.
            self._shown.append(loss.detach().reshape(()).clone())
        elif isinstance(loss, Real):
            self._shown.append(float(loss))
        else:
            raise TypeError(f"loss must be a tensor or a number, got {type(loss).__name__}")

    def forget(self) -> None:
        """Drop the losses observed so far."""
        self._shown = []

    def average_into(self, out: Tensor) -> None:
        """Write the mean of the losses over all processes into a 0-dim tensor, and forget the losses.

        There must be at least one.
        """
        shown, self._shown = self._shown, []
        out.fill_(shown[0] if len(shown) == 1 else 0.0)
        for loss in shown if len(shown) > 1 else ():
            out += (loss.to(out) if isinstance(loss, Tensor) else loss) / len(shown)
        ranks.average_(out)

    def state(self) -> list[float]:
        """Return the losses as plain numbers."""
        return [float(loss) for loss in self._shown]

    def load(self, state: Iterable[float]) -> None:
        """Replace the losses by those of `state`."""
        self._shown = list(state)


def training_loss(result: Any) -> Tensor | None:
    """Return the training loss in the result of a loss function, or of a model that computes its own loss.

    This is the result itself, or its entry "loss", if it is a single number that requires grad; otherwise None, as in
    evaluation.
    """
    loss = result.get("loss") if isinstance(result, dict) else result
    is_loss = isinstance(loss, Tensor) and loss.numel() == 1 and torch.is_grad_enabled() and loss.requires_grad
    return loss if is_loss else None
