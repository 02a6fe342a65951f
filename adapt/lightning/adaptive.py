"""The callback for precision that a policy decides."""

import os
from typing import Any, Unpack

from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn

from adapt.adaptive.attachment import check_policy
from adapt.adaptive.options import CommonOptions, Settings, shows_options
from adapt.lightning.base import PrecisionCallback
from adapt.lightning.compatibility import attach_all, with_endless_epochs, with_steps_per_epoch
from adapt.lightning.losses import Losses
from adapt.lightning.packages import LightningModule, Trainer
from adapt.switching.policy import Policy


class AdaptivePrecision(PrecisionCallback):
    """Trains the layers of a LightningModule at adaptive fixed-point precision. Nothing in the module changes.

    When fit starts, before the sanity check and before a checkpoint is restored, a controller is attached to every
    optimizer that has layers, whose present weights become the float32 masters. When fit ends, or fails, it is
    detached: the module keeps the masters rounded to nearest and keeps rounding its activations to nearest, so that
    `trainer.test` sees the network that was validated within fit; a copy or pickle of the module rounds them too. If
    there was no step, the module is as it was. Another fit starts afresh from these weights. Forward passes of training
    see weights rounded as `rounding` says; validation and checkpoints see the masters rounded to nearest.

    An optimizer with a controller of its own, such as `adapt.ASGD`, keeps it. The callback's settings do not apply to
    it, and a warning says so if any were given. It is detached like the others.

    The policy sees the losses that Lightning's backward is called with, with accumulation's divisor and AMP's scale
    undone. With several optimizers (manual optimization), a loss belongs to those whose gradients its backward pass
    changed.

    Resuming by `fit(ckpt_path=…)` is exact, because the optimizers' state holds everything. Files of
    `ModelCheckpoint(save_weights_only=True)` hold the quantised weights and their formats (`adapt.formats(path)`), but
    no run can be resumed from them.

    These figures of all quantised layers together are logged, and can be monitored: adapt/mean_word_length, the bits of
    the average weight, and adapt/nonzero; and modelled ones, adapt/size_ratio, which leaves zeros out,
    adapt/memory_ratio and, if the multiply-adds are known, from `example_input_array` or from the first training batch,
    adapt/training_speedup and adapt/inference_speedup.
    Every logger gets each layer's word_length, fraction_length and nonzero, as `adapt_layers/word_length/<layer>` and
    so on, by the LightningModule's names where those of several optimizers are not unique. A TensorBoard logger gets
    pictures too, and points only where a value changes. A logger with a local folder gets `trace.npz` there, or
    `trace_0.npz` and so on with several optimizers, for `adapt report`.
    Every logger gets the settings of the run, `trace.run`, as the hyperparameter "adapt" beside the module's own, and a
    TensorBoard logger as hyperparameters and as the text adapt/run, unless the trainer logs no hyperparameters.

    A policy that must know the optimizer steps of an epoch, such as `adapt.MuPPET()`, is told when training starts.

    Works with DDP, and with `WeightAveraging`, which then averages the masters and evaluates their mean on the grid.
    Checkpoints of such a fit hold the mean rounded as it was evaluated, and the mean itself under "adapt_mean"; those
    saved after fit, or when it fails, hold the mean alone. Strategies that shard (FSDP, DeepSpeed, ModelParallel),
    `StochasticWeightAveraging`, and optimizers that evaluate the loss several times in a step (LBFGS) are refused.

    Args:
        log_internals: also log, by layer, what AdaPT decides from: lookback, resolution and diversity.
        export: where to write the network of the best checkpoint as a packed file when fit ends, as by
            `adapt.export.capture(checkpoint, module).save(export)`; None writes none. Needs the extra "export".
        policy, l1, l2, options: as in `adapt.attach` (rounding, seed, layers, layer_bits, activations, …).

    Attributes:
        controllers: one for each optimizer with layers, of the running fit or the latest.
    """

    @shows_options
    def __init__(
        self,
        policy: Policy[Any] | None = None,
        l1: float = 0.0,
        l2: float = 0.0,
        *,
        log_internals: bool = False,
        export: str | os.PathLike[str] | None = None,
        **options: Unpack[CommonOptions],
    ) -> None:
        self._log_internals = log_internals
        super().__init__(export)
        # Refuse wrong settings at once, not when fit starts.
        if policy is not None:
            check_policy(policy)
        self._policy, self._settings = policy, Settings.of(l1=l1, l2=l2, **options)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach: the model is on its device, and checkpoint and sanity check come next.

        A checkpoint restored earlier would not bring the controllers' state, and the sanity check would run in float32.
        """
        self.controllers += attach_all(trainer.optimizers, pl_module, with_endless_epochs(self._policy), self._settings)
        self._losses = Losses(trainer.optimizers, self.controllers)
        if any(getattr(callback, "save_weights_only", False) for callback in trainer.checkpoint_callbacks):
            rank_zero_info(
                "ModelCheckpoint(save_weights_only=True) saves the quantised weights and their formats without the "
                "float32 masters: such a checkpoint can be deployed, but the run cannot be resumed from it."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell the policy how long an epoch is, and warn about a run that is too short for a switch.

        In `on_fit_start` the data are not set up, so neither is known there.
        """
        policy = self._policy
        told = with_steps_per_epoch(policy, trainer, pl_module)
        for controller in self.controllers:
            if told is not policy and controller.policy == with_endless_epochs(policy):
                controller.policy = told
        super().on_train_start(trainer, pl_module)
        steps = trainer.estimated_stepping_batches
        for controller in self.controllers:
            shortest = getattr(controller.policy, "lookback", (0,))[0]
            if 0 <= steps < shortest and not trainer.fast_dev_run:  # type: ignore[attr-defined]
                rank_zero_warn(
                    f"the shortest lookback is {shortest} steps and the run has {steps:g}, so no precision can move: "
                    f"train longer, or give the policy a lookback such as {(max(1, int(steps) // 8), int(steps))}"
                )
