"""Weight averaging of masters instead of quantised weights, with a mean that is evaluated on the grid."""

import contextlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from adapt.engine.engine import Engine
from adapt.layers.optimizers import optimized
from adapt.lightning.packages import Callback, LightningModule, Trainer

MEAN = "adapt_mean"
"""Where a checkpoint keeps the float32 mean of the parameters that its state_dict holds rounded."""


class BeforeAveraging(Callback):
    """Stands before a `WeightAveraging` callback, so that each of its hooks runs before that callback's own.

    Args:
        controllers: those of the running fit; filled when it starts.
    """

    def __init__(self, controllers: Sequence[Engine]) -> None:
        self.controllers = controllers
        self.shown = contextlib.ExitStack()
        self.means: list[tuple[Tensor, Tensor]] = []

    def on_train_batch_end(self, *args: Any) -> None:
        """Show the masters, which averaging reads here."""
        for controller in self.controllers:
            self.shown.enter_context(controller.master_weights())

    def on_train_epoch_end(self, *args: Any) -> None:
        """Show the masters: averaging may read them once an epoch instead."""
        self.on_train_batch_end()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Let averaging resume from the float32 mean, not from the rounded one."""
        checkpoint["state_dict"] = {**checkpoint["state_dict"], **checkpoint.get(MEAN, {})}

    @torch.no_grad()
    def on_validation_epoch_end(self, *args: Any) -> None:
        """Put the float32 mean back, which averaging swaps with the weights of training here."""
        for parameter, mean in self.means:
            parameter.copy_(mean)
        self.means.clear()

    def release(self) -> None:
        """Hide the masters and forget the mean, wherever the fit was interrupted."""
        self.shown.close()
        self.means.clear()


class AfterAveraging(Callback):
    """Stands after the `WeightAveraging` callback, so that each of its hooks runs after that callback's own."""

    def __init__(self, before: BeforeAveraging) -> None:
        self.before = before

    def on_train_batch_end(self, *args: Any) -> None:
        """Hide the masters, which averaging has read."""
        self.before.shown.close()

    def on_train_epoch_end(self, *args: Any) -> None:
        """Hide the masters, as after a batch."""
        self.before.shown.close()

    @torch.no_grad()
    def on_validation_epoch_start(self, *args: Any) -> None:
        """Keep the mean that averaging has put into the parameters, and round it there."""
        for controller in self.before.controllers:
            self.before.means += [(p, p.detach().clone()) for p in optimized(controller.optimizer)]
            controller.quantize_()

    def on_train_end(self, *args: Any) -> None:
        """Round the mean that averaging has left in the module."""
        for controller in self.before.controllers:
            controller.quantize_()

    @torch.no_grad()
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Round the mean that averaging has put into the checkpoint, as it is evaluated, and keep the mean too."""
        saved, means = checkpoint["state_dict"], checkpoint.setdefault(MEAN, {})
        names: defaultdict[Tensor, list[str]] = defaultdict(list)
        for name, parameter in pl_module.named_parameters(remove_duplicate=False):
            if name in saved:
                names[parameter].append(name)
        for masters in (each for controller in self.before.controllers for each in controller.all_masters):
            # Masters round what their parameters hold, so the mean has to pass through the parameters.
            held = [parameter.detach().clone() for parameter in masters.parameters]
            for shown in masters.parameters:
                for name in names[shown]:
                    means[name] = saved[name]
                    shown.copy_(saved[name])
            masters.round_parameters()
            for shown, before in zip(masters.parameters, held, strict=True):
                for name in names[shown]:
                    saved[name] = shown.detach().to(saved[name].device, copy=True)
                shown.copy_(before)
