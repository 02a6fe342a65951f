"""What both callbacks share: runs attached to the trainer's optimizers for as long as fit lasts."""

import contextlib
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from adapt.engine import persistence
from adapt.engine.registry import attached
from adapt.engine.saved_formats import WEIGHTS_ONLY_KEY
from adapt.lightning.averaging import BeforeAveraging
from adapt.lightning.compatibility import arrange, check_trainer, disperse, untouched
from adapt.lightning.losses import Losses
from adapt.lightning.reports import Reports
from adapt.trace import Trace

ELSEWHERE = (
    "; a strategy such as ddp_spawn or ddp_fork leaves it in the processes that it starts, which save the trace in the "
    "folder of the logger"
)
"""What to say of a callback that has nothing to show where fit may have run in other processes."""


class PrecisionCallback(Callback):
    """Keeps what is attached to the trainer's optimizers, shows it the losses, and reports. A guest fills it.

    Attributes:
        controllers: one for each optimizer with layers, of the running fit or the latest.
    """

    def __init__(self) -> None:
        self.controllers: list[Any] = []
        self._losses = Losses((), ())
        self._reports = Reports()
        self._evaluation = contextlib.ExitStack()
        self._averagings: list[BeforeAveraging] = []

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
            self.controllers.clear()
            self._reports = Reports()
        check_trainer(trainer, PrecisionCallback)
        if stage == "fit":
            self._averagings = arrange(trainer, self, self.controllers)
            self._save_formats(trainer)

    def _save_formats(self, trainer: Trainer) -> None:
        """Put the formats into checkpoints that are saved without optimizer states.

        Lightning calls no hook of callbacks for those (`ModelCheckpoint(save_weights_only=True)`).
        """
        strategy, save = trainer.strategy, type(trainer.strategy).save_checkpoint

        def save_checkpoint(checkpoint: dict[str, Any], *args: Any, **kwargs: Any) -> None:
            attached_now = self._attached()
            if attached_now and "optimizer_states" not in checkpoint:
                packed = [persistence.pack_formats(controller.formats) for controller in attached_now]
                checkpoint[WEIGHTS_ONLY_KEY] = {name: form for formats in packed for name, form in formats.items()}
            save(strategy, checkpoint, *args, **kwargs)

        strategy.save_checkpoint = save_checkpoint  # type: ignore[method-assign]

    # One step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Learn the shapes of the first batch, which no earlier hook sees."""
        self._reports.begin(trainer, pl_module, batch)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Note the loss without accumulation's divisor and AMP's scale; only this hook is given the loss itself."""
        loss = loss.detach()
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None:
            # scaler.get_scale() would wait for the device.
            loss = loss / scaler.scale(torch.ones_like(loss))
        if pl_module.automatic_optimization:
            loss = loss * trainer.accumulate_grad_batches
        self._losses.before_backward(loss)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find out whose gradients the backward pass changed: with several optimizers a loss belongs to those."""
        self._losses.after_backward()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Show the losses behind the coming step, whose gradients are complete and unscaled by now."""
        self._losses.before_step(optimizer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log once the optimizers and schedulers have stepped."""
        self._reports.log(trainer, pl_module, self.controllers)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw at the ends of epochs, where a second does not matter."""
        self._reports.draw(pl_module, self.controllers)

    # Validation

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show nearest-rounded weights even to a validation_step that calls no module's forward."""
        for controller in self._attached():
            self._evaluation.enter_context(controller.evaluation_weights())

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go back to the weights of training."""
        self._evaluation.close()

    # The end

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save and detach: after this hook the strategy moves the module to other memory."""
        self._reports.end(trainer, pl_module, self.controllers)
        self._detach()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save what can be saved, and detach."""
        try:
            if self._attached():
                self._reports.end(trainer, pl_module, self.controllers)
        except Exception as error:
            rank_zero_warn(f"the trace of the interrupted run could not be saved: {error}")
        finally:
            self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Detach where training never began, as after a tuner."""
        self._detach()
        disperse(trainer)
        vars(trainer.strategy).pop("save_checkpoint", None)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Make a checkpoint that is saved after fit as good as one saved within: the same run resumes from it."""
        for optimizer, state in zip(trainer.optimizers, checkpoint["optimizer_states"], strict=True):
            for controller in self.controllers:
                missing = controller.optimizer is optimizer and persistence.KEY not in state
                if missing and untouched(controller, checkpoint["state_dict"]):
                    state[persistence.KEY] = controller.state_dict()

    def _attached(self) -> list[Any]:
        return [controller for controller in self.controllers if attached(controller.optimizer) is controller]

    def _detach(self) -> None:
        self._evaluation.close()
        for averaging in self._averagings:
            averaging.release()
        for controller in self.controllers:
            controller.detach("evaluation" if controller.step else "masters")
