"""AdaPT as one callback more: a controller on the module's own optimizers for as long as fit runs."""

import contextlib
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from adapt.attachment import attached, check_policy
from adapt.controller import Controller
from adapt.layers import layering
from adapt.lightning.averaging import BeforeAveraging
from adapt.lightning.compatibility import (
    arrange,
    attach_all,
    check_trainer,
    disperse,
    tell_steps_per_epoch,
    until_known,
    untouched,
)
from adapt.lightning.losses import Losses
from adapt.lightning.reports import Reports
from adapt.run import checkpoint as persistence
from adapt.run.settings import Settings
from adapt.switching.policy import Policy
from adapt.trace import Trace

ELSEWHERE = (
    "; a strategy such as ddp_spawn or ddp_fork leaves it in the processes that it starts, which save the trace in the "
    "folder of the logger"
)
"""What to say of a callback that has nothing to show where fit may have run in other processes."""


class AdaptivePrecision(Callback):
    """Trains the layers of a LightningModule at adaptive fixed-point precision. Nothing in the module changes.

    When fit starts, before the sanity check and before a checkpoint is restored, a controller is attached to every
    optimizer that has layers; the weights of then become the float32 masters. When fit ends, or fails, it is detached:
    the module keeps the masters rounded to nearest, or its weights as they were if there was no step, and rounds no
    activations any more, which `trainer.test` after fit therefore sees in float32. Another fit begins anew from these.
    Forward passes of training see weights rounded as `rounding` says; those of validation, and checkpoints, the masters
    rounded to nearest.

    An optimizer with a controller of its own, such as `adapt.ASGD`, keeps it: this callback's settings do not apply
    to it, and a warning says so if any were given. It is detached like the others.

    The strategy follows the losses of Lightning's backward, with accumulation and AMP's scale undone. With several
    optimizers (manual optimization) a loss counts for those whose gradients its backward pass changed.

    Resuming by `fit(ckpt_path=…)` is exact, because everything rides in the optimizers' state.
    `ModelCheckpoint(save_weights_only=True)` leaves that out: its files hold deployable weights, no run.

    Logged of the layers that are quantised, together, and so fit to be monitored: adapt/mean_word_length,
    adapt/nonzero, adapt/size_ratio, adapt/memory_ratio; and where the multiply-adds are known, from
    `example_input_array` or from the first training batch if forward takes it, adapt/training_speedup and
    adapt/inference_speedup by the performance model. Every logger gets each layer's word_length, fraction_length,
    nonzero, lookback, resolution and diversity, as `word_length/<layer>` and so on, by the LightningModule's names
    where those of several optimizers are not unique. A TensorBoard logger gets pictures too, and the folder of a
    logger that has one gets `trace.npz`, or `trace_0.npz` and so on with several optimizers, for `adapt report`.

    A policy that must know the optimizer steps of an epoch, such as `adapt.MuPPET()`, is told when training starts.

    Works with DDP, and with `WeightAveraging`, which then averages the masters and evaluates their mean on the grid.
    Checkpoints of such a fit hold the mean rounded as it was evaluated, and the mean itself under "adapt_mean"; those
    that are saved after fit, or when it fails, hold the mean alone.
    Refused are strategies that shard (FSDP, DeepSpeed, ModelParallel), `StochasticWeightAveraging`, and optimizers
    that evaluate the loss several times in a step (LBFGS).

    Args:
        policy, l1, l2, rounding, seed, layers, quantize_biases, l1_by_word_length, trace_every, activations,
            quantize_errors, execution, execution_backward: as in `adapt.attach`.

    Attributes:
        controllers: one for each optimizer with layers, of the running fit or the latest.
    """

    def __init__(
        self,
        policy: Policy[Any] | None = None,
        l1: float = 0.0,
        l2: float = 0.0,
        *,
        rounding: str = "stochastic",
        seed: int = 0,
        layers: layering.Choice = layering.is_matrix,
        quantize_biases: bool = False,
        l1_by_word_length: bool = False,
        trace_every: int = 1,
        activations: str | int | None = None,
        quantize_errors: bool = False,
        execution: str | None = None,
        execution_backward: bool = True,
    ) -> None:
        self._options: dict[str, Any] = {
            "policy": policy,
            "l1": l1,
            "l2": l2,
            "rounding": rounding,
            "seed": seed,
            "layers": layers,
            "quantize_biases": quantize_biases,
            "l1_by_word_length": l1_by_word_length,
            "trace_every": trace_every,
            "activations": activations,
            "quantize_errors": quantize_errors,
            "execution": execution,
            "execution_backward": execution_backward,
        }
        # Refused here and not when fit starts.
        if policy is not None:
            check_policy(policy)
        Settings(**{name: value for name, value in self._options.items() if name != "policy"})
        self.controllers: list[Controller] = []
        self._losses = Losses((), ())
        self._reports = Reports()
        self._evaluation = contextlib.ExitStack()
        self._averagings: list[BeforeAveraging] = []

    @property
    def controller(self) -> Controller:
        """The controller, where there is one.

        Raises:
            RuntimeError: no fit has started in this process, or several optimizers have layers.
        """
        if not self.controllers:
            raise RuntimeError(f"{type(self).__name__} has no controller before fit starts{ELSEWHERE}")
        if len(self.controllers) != 1:
            raise RuntimeError(
                f"AdaptivePrecision has {len(self.controllers)} controllers, one for each optimizer with layers of the "
                "latest fit: take one from its list `controllers`"
            )
        return self.controllers[0]

    @property
    def trace(self) -> Trace:
        """What happened in every step, where there is one controller.

        Raises:
            RuntimeError: no fit has started in this process, or several optimizers have layers.
        """
        return self.controller.trace

    # The beginning

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot work, and find the place among the callbacks."""
        if stage == "fit":
            self._detach()
            self.controllers.clear()
            self._reports = Reports()
        check_trainer(trainer, AdaptivePrecision)
        if stage == "fit":
            self._averagings = arrange(trainer, self, self.controllers)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach."""
        options = self._options | {"policy": until_known(self._options["policy"])}
        self.controllers += attach_all(trainer.optimizers, pl_module, options)
        self._losses = Losses(trainer.optimizers, self.controllers)
        if any(getattr(callback, "save_weights_only", False) for callback in trainer.checkpoint_callbacks):
            rank_zero_info(
                "ModelCheckpoint(save_weights_only=True) saves the quantised weights without their float32 masters: "
                "such a checkpoint can be deployed, but the run cannot be resumed from it."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell the policy how long an epoch is, and warn of a run that is too short for a switch.

        Neither is known before the data are set up.
        """
        policy = self._options["policy"]
        told = tell_steps_per_epoch(policy, trainer, pl_module)
        for controller in self.controllers:
            if told is not policy and controller.policy == until_known(policy):
                controller.policy = told
        steps = trainer.estimated_stepping_batches
        for controller in self.controllers:
            shortest = getattr(controller.policy, "lookback", (0,))[0]
            if 0 <= steps < shortest and not trainer.fast_dev_run:  # type: ignore[attr-defined]
                rank_zero_warn(
                    f"the shortest lookback is {shortest} steps and the run has {steps:g}, so no precision can move: "
                    f"train longer, or give the policy a lookback such as {(max(1, int(steps) // 8), int(steps))}"
                )

    # One step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Look at the first batch."""
        self._reports.begin(trainer, pl_module, batch)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Note the loss, without accumulation's divisor and AMP's scale."""
        loss = loss.detach()
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None:
            # scaler.get_scale() would wait for the device.
            loss = loss / scaler.scale(torch.ones_like(loss))
        if pl_module.automatic_optimization:
            loss = loss * trainer.accumulate_grad_batches
        self._losses.before_backward(loss)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See whose gradients changed."""
        self._losses.after_backward()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Show the losses that the step follows from."""
        self._losses.before_step(optimizer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log."""
        self._reports.log(trainer, pl_module, self.controllers)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw."""
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

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Make a checkpoint that is saved after fit as good as one saved within: the same run resumes from it."""
        for optimizer, state in zip(trainer.optimizers, checkpoint["optimizer_states"], strict=True):
            for controller in self.controllers:
                missing = controller.optimizer is optimizer and persistence.KEY not in state
                if missing and untouched(controller, checkpoint["state_dict"]):
                    state[persistence.KEY] = controller.state_dict()

    def _attached(self) -> list[Controller]:
        return [controller for controller in self.controllers if attached(controller.optimizer) is controller]

    def _detach(self) -> None:
        self._evaluation.close()
        for averaging in self._averagings:
            averaging.release()
        for controller in self.controllers:
            controller.detach("evaluation" if controller.step else "masters")
