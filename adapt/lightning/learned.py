"""The callback for learned bit widths: three phases share the trainer's epochs."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Unpack

from lightning_utilities.core.rank_zero import rank_zero_info

from adapt import user_warnings
from adapt.learned.budget import Budget
from adapt.learned.distillation import Distillation
from adapt.learned.keywords import WidthOptions
from adapt.learned.options import LearnedWidths
from adapt.learned.phases import Phases
from adapt.lightning.fitting import DistilledTraining, check_phases, in_steps, unfinished_learning
from adapt.lightning.forward_inputs import network_of
from adapt.lightning.learner_callback import LearnerCallback
from adapt.lightning.packages import LightningModule, Trainer
from adapt.switching.fixed import FOREVER


class LearnedBitwidth(LearnerCallback[LearnedWidths]):
    """Learns the bit width of every weight channel and activation of a LightningModule under size budgets.

    Nothing in the module changes. When fit starts, before the sanity check and before a checkpoint is restored, the
    module's one optimizer is attached to (see `adapt.learned.attach`); when training starts, a few of its batches
    calibrate the activations. The phases share the trainer's steps, and at the end the module keeps its quantised
    weights and keeps rounding its activations: `trainer.test` sees the network that was validated within fit, and so
    does a copy or pickle of the module. Resuming by `fit(ckpt_path=…)` is exact, because everything is saved in the
    optimizer's state.

    Where configure_optimizers returns a scheduler, the learning rate is the scheduler's; otherwise it rises and falls
    as a cosine over the training, with the optimizer's rate as the peak.

    Logged and available for monitoring: adapt/mean_word_length, adapt/nonzero, adapt/size_ratio, adapt/memory_ratio,
    as by `AdaptivePrecision`; also adapt/weight_bits, adapt/activation_bits, adapt/weight_kilobytes,
    adapt/activation_kilobytes and adapt/penalty. Every logger gets the mean word length of each tensor as
    `adapt_layers/word_length/<tensor>`. What each phase did, and by how much learning missed the budgets, is reported
    when it ends and stays in `learner.log`. A TensorBoard logger gets pictures, by layer and by channel; the folder of
    a logger that has one gets `trace.npz` and `widths.npz`; the settings are logged as by `AdaptivePrecision`.

    The steps of manual optimization and of a `GradientAccumulationScheduler` do not follow from epochs: give the
    trainer `max_steps` alone. If training ends before the budgets are met, a warning says so.

    It refuses several optimizers, half precision with a scaler, finders of learning rate and batch size, and what
    `AdaptivePrecision` refuses.

    Args:
        weight_budget, activation_budget: `adapt.learned.Budget(kilobytes=…)` or `Budget(bits=…)`.
        phases: pre-training, learning and fine-tuning, as shares of the training that sum to 1, or as whole numbers of
            epochs that sum to the trainer's.
        calibration: how many training batches calibrate the activations, or the batches themselves, as in
            `adapt.learned.attach`: needed where training data can be read only once. Forward takes the part of a batch
            that it can, as many arguments as `example_input_array` has; where it takes none, training_step runs.
        distillation: a teacher and how its predictions count. The student's logits are what the module's forward
            returns in training_step, or that of its only submodule with parameters.
        options: activation_size, floor, weight_scaling, activation_scaling, delta, beta, update_every, width_rate,
            warmup, quantize_biases, layers and layer_bits, as in `adapt.learned.attach`.
        export: where to write the network of the best checkpoint as a packed file when fit ends, as by
            `adapt.export.capture(checkpoint, module).save(export)`; None writes none. Needs the extra "export".

    Attributes:
        controllers: the learner of the running fit or the latest, in a list.
    """

    def __init__(
        self,
        weight_budget: Budget,
        activation_budget: Budget | None = None,
        *,
        phases: Sequence[float] = (0.1, 0.8, 0.1),
        calibration: int | Iterable[Any] = 8,
        distillation: Distillation | None = None,
        export: str | os.PathLike[str] | None = None,
        **options: Unpack[WidthOptions],
    ) -> None:
        if distillation is not None and not isinstance(distillation, Distillation):
            raise TypeError(f"distillation must be an adapt.learned.Distillation, got {distillation!r}")
        self._phases, self._distillation = check_phases(phases), distillation
        # The phases' length becomes known in fit, but wrong options are refused here.
        plan = LearnedWidths(
            weight_budget=weight_budget,
            activation_budget=activation_budget,
            phases=Phases(0, FOREVER, 0),
            schedule=True,
            **options,
        )
        super().__init__(plan, calibration=calibration, export=export)

    def _begin(self) -> None:
        super()._begin()
        self._distilled: DistilledTraining | None = None
        self._reported = 0

    def _plan(self, trainer: Trainer) -> LearnedWidths:
        scheduled = bool(trainer.lr_scheduler_configs)
        if scheduled:
            rank_zero_info("LearnedBitwidth leaves the learning rate to the module's own scheduler.")
        return replace(self._settings, schedule=not scheduled)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach, and add the teacher's loss to that of training_step."""
        super().on_fit_start(trainer, pl_module)
        if self._distillation is not None:
            self._distilled = DistilledTraining(pl_module, network_of(pl_module), self._distillation)

    def _begin_training(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Share out the steps, and calibrate."""
        self.learner.use_phases(in_steps(self._phases, self._steps(trainer, pl_module), trainer.max_epochs))
        super()._begin_training(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log, and report the phases that have ended."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        log = self.learner.log
        for entry in log[self._reported :]:
            figures = ", ".join(f"{name} {value:.4g}" for name, value in entry.items() if not isinstance(value, str))
            rank_zero_info(f"LearnedBitwidth, end of {entry['phase']}: {figures}")
        self._reported = len(log)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn if learning was not over, save and detach."""
        self._warn_if_unfinished(trainer)
        super().on_train_end(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Warn if learning was not over, save what can be saved, and detach."""
        self._warn_if_unfinished(trainer)
        super().on_exception(trainer, pl_module, exception)

    def _warn_if_unfinished(self, trainer: Trainer) -> None:
        """Warn if training ends too early."""
        if trainer.is_global_zero and self._attached() and (message := unfinished_learning(self.learner)):
            user_warnings.warn(message)

    def _detach(self) -> None:
        if self._distilled is not None:
            self._distilled.end()
            self._distilled = None
        super()._detach()
