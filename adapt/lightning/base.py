"""The base of all callbacks: controllers on the trainer's optimizers for as long as fit lasts."""

import contextlib
import os
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from adapt.engine import persistence
from adapt.engine.saved_formats import WEIGHTS_ONLY_KEY
from adapt.lightning.artefact import check_artefact, write_artefact
from adapt.lightning.averaging import BeforeAveraging
from adapt.lightning.compatibility import arrange_callbacks, check_trainer, detach, remove_helpers, untouched
from adapt.lightning.losses import Losses
from adapt.lightning.packages import Callback, LightningModule, Trainer
from adapt.lightning.reports import Reports
from adapt.trace import Trace

ELSEWHERE = (
    "; a strategy such as ddp_spawn or ddp_fork leaves it in the processes that it starts, which save the trace in the "
    "folder of the logger"
)
"""The end of the message for a callback without controllers: fit may have run in other processes."""


class PrecisionCallback(Callback):
    """Shows the losses to the controllers, reports what they did, and detaches them when fit ends.

    A subclass fills `controllers` and `_losses` in `on_fit_start`. Copies and pickles of a callback have its settings,
    but no controllers: those belong to the optimizers of one fit.

    Args:
        export: where to write the packed file of the best checkpoint when fit ends; None writes none.

    Attributes:
        controllers: one for each optimizer with layers, of the running fit or the latest.
    """

    _log_internals = False

    def __init__(self, export: str | os.PathLike[str] | None = None) -> None:
        self._artefact = export
        self._begin()

    def _begin(self) -> None:
        """Forget the latest fit."""
        self.controllers: list[Any] = []
        self._losses = Losses((), ())
        self._reports = Reports(self._log_internals)
        self._evaluation = contextlib.ExitStack()
        self._averagings: list[BeforeAveraging] = []

    def __getstate__(self) -> dict[str, Any]:
        fresh = object.__new__(type(self))
        vars(fresh).update(vars(self))
        fresh._begin()
        state = vars(fresh)
        # Lightning leaves these methods of the latest module in every callback that has a hook for training.
        for name in ("log", "log_dict"):
            state.pop(name, None)
        return state

    @property
    def controller(self) -> Any:
        """The controller, where there is one.

        Raises:
            RuntimeError: no fit has started in this process, or several optimizers have layers.
        """
        if not self.controllers:
            raise RuntimeError(f"{type(self).__name__} has no controller before fit starts{ELSEWHERE}")
        if len(self.controllers) != 1:
            raise RuntimeError(
                f"{type(self).__name__} has {len(self.controllers)} controllers, one for each optimizer with layers "
                "of the latest fit: take one from its list `controllers`"
            )
        return self.controllers[0]

    @property
    def trace(self) -> Trace:
        """What happened in every step, where there is one controller.

        Raises:
            RuntimeError: no fit has started in this process, or several optimizers have layers.
        """
        trace: Trace = self.controller.trace
        return trace

    # The beginning

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse trainers that cannot work, and move to the front of the callbacks.

        Lightning calls this before it builds the optimizers, so nothing has been touched yet.
        """
        if stage == "fit":
            self._detach()
            self._begin()
        check_trainer(trainer, PrecisionCallback)
        if stage == "fit":
            check_artefact(self._artefact, trainer)
            self._averagings = arrange_callbacks(trainer, self, self.controllers)
            self._save_formats(trainer)

    def _save_formats(self, trainer: Trainer) -> None:
        """Let the strategy add the formats to checkpoints without optimizer states, also to those saved after fit.

        Lightning calls no hook of a callback for them (`ModelCheckpoint(save_weights_only=True)`).
        """
        strategy, save = trainer.strategy, type(trainer.strategy).save_checkpoint

        def save_checkpoint(checkpoint: dict[str, Any], *args: Any, **kwargs: Any) -> None:
            if "optimizer_states" not in checkpoint:
                shown = [c for c in self.controllers if c.is_attached or untouched(c, checkpoint["state_dict"])]
                if formats := {name: form for controller in shown for name, form in controller.formats.items()}:
                    checkpoint[WEIGHTS_ONLY_KEY] = persistence.pack_formats(formats)
            save(strategy, checkpoint, *args, **kwargs)

        strategy.save_checkpoint = save_checkpoint  # type: ignore[method-assign]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the loggers the settings of the run, which are complete by now."""
        self._reports.describe(trainer, pl_module, self.controllers)

    # One step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Count the multiply-adds of the first batch: no earlier hook is given one."""
        self._reports.begin(trainer, pl_module, batch)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Note the loss, with accumulation's divisor and AMP's scale undone. No other hook is given this tensor."""
        loss = loss.detach()
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None:
            # scaler.get_scale() would wait for the device.
            loss = loss / scaler.scale(torch.ones_like(loss))
        if pl_module.automatic_optimization:
            loss = loss * trainer.accumulate_grad_batches
        self._losses.before_backward(loss)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find out whose gradients have changed, before another backward pass changes others."""
        self._losses.after_backward()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Show the losses of the coming step: Lightning calls this when all its gradients are there."""
        self._losses.before_step(optimizer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log: the step has been made, and `log` still reaches the trainer's metrics of this batch."""
        self._reports.log(trainer, pl_module, self.controllers)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw once an epoch: a picture takes longer than a step."""
        self._reports.draw(pl_module, self.controllers)

    # Validation

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show weights that are rounded to nearest, also to a validation_step that calls no module's forward.

        This is the first hook of validation; callbacks that swap weights do so in `on_validation_epoch_start`.
        """
        for controller in self._attached():
            self._evaluation.enter_context(controller.evaluation_weights())

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go back to the weights of training: the callbacks that swap weights have swapped them back by now."""
        self._evaluation.close()

    # The end

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save and detach: after this hook the strategy moves the module off the device."""
        self._reports.end(trainer, pl_module, self.controllers)
        self._detach()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the artefact now that all checkpoints are saved."""
        if self._artefact is not None:
            write_artefact(self._artefact, trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save what can be saved, and detach: Lightning calls no teardown hook after an exception."""
        try:
            if self._attached():
                self._reports.end(trainer, pl_module, self.controllers)
        except Exception as error:
            rank_zero_warn(f"the trace of the interrupted run could not be saved: {error}")
        finally:
            self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Detach where `on_train_end` was not called: after a tuner, or a fit without a step."""
        self._detach()
        remove_helpers(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Let the run resume from a checkpoint saved after fit, whose optimizers have no controllers any more."""
        for optimizer, state in zip(trainer.optimizers, checkpoint["optimizer_states"], strict=True):
            for controller in self.controllers:
                missing = controller.optimizer is optimizer and persistence.KEY not in state
                if missing and untouched(controller, checkpoint["state_dict"]):
                    state[persistence.KEY] = controller.state_dict()

    def _attached(self) -> list[Any]:
        return [controller for controller in self.controllers if controller.is_attached]

    def _detach(self) -> None:
        self._evaluation.close()
        for averaging in self._averagings:
            averaging.release()
        detach(self.controllers)
