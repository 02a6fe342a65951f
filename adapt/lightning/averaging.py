"""Weight averaging that sees masters, and evaluates on the grid."""

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from adapt.controller import Controller
from adapt.layers.layering import optimized


class BeforeAveraging(Callback):
    """Stands before a `WeightAveraging` callback: shows it the masters, and gives back the mean that it keeps.

    Args:
        controllers: those of the running fit; filled when it starts.
    """

    def __init__(self, controllers: Sequence[Controller]) -> None:
        self.controllers = controllers
        self.shown = contextlib.ExitStack()
        self.means: list[tuple[Tensor, Tensor]] = []

    def on_train_batch_end(self, *args: Any) -> None:
        for controller in self.controllers:
            self.shown.enter_context(controller.master_weights())

    def on_train_epoch_end(self, *args: Any) -> None:
        self.on_train_batch_end()

    @torch.no_grad()
    def on_validation_epoch_end(self, *args: Any) -> None:
        for parameter, mean in self.means:
            parameter.copy_(mean)
        self.means.clear()

    def release(self) -> None:
        """Take away the masters and forget the mean, wherever the fit was interrupted."""
        self.shown.close()
        self.means.clear()


class AfterAveraging(Callback):
    """Stands after the `WeightAveraging` callback: takes the masters away, and rounds the mean that it shows."""

    def __init__(self, before: BeforeAveraging) -> None:
        self.before = before

    def on_train_batch_end(self, *args: Any) -> None:
        self.before.shown.close()

    def on_train_epoch_end(self, *args: Any) -> None:
        self.before.shown.close()

    @torch.no_grad()
    def on_validation_epoch_start(self, *args: Any) -> None:
        for controller in self.before.controllers:
            self.before.means += [(p, p.detach().clone()) for p in optimized(controller.optimizer)]
            controller.quantize_()

    def on_train_end(self, *args: Any) -> None:
        for controller in self.before.controllers:
            controller.quantize_()
