"""The base of the callbacks whose formats are learned or observed: one learner on the module's one optimizer."""

import math
import os
from collections.abc import Iterable
from typing import Any, Generic, TypeVar

from adapt.learned.attachment import attach_plan
from adapt.learned.learner import Learner
from adapt.learned.options import Plan
from adapt.lightning.base import ELSEWHERE, PrecisionCallback
from adapt.lightning.calibration import calibration_of
from adapt.lightning.compatibility import callbacks, has_layers, why_steps_are_unknown, without_layers
from adapt.lightning.forward_inputs import network_of
from adapt.lightning.losses import Losses
from adapt.lightning.packages import LightningModule, Trainer, classes
from adapt.lightning.widths import WidthReports

_FINETUNING = classes("callbacks.BaseFinetuning")
_FINDERS = classes("callbacks.LearningRateFinder", "callbacks.BatchSizeFinder")

PlanT = TypeVar("PlanT", bound=Plan)


class LearnerCallback(PrecisionCallback, Generic[PlanT]):
    """Attaches a learner when fit starts, and gives it the training's length and batches to calibrate with.

    Args:
        plan: the options of the run, checked; its length may be a placeholder until training starts.
        calibration: how many training batches calibrate the activations, or the batches themselves.
        export: where to write the packed file of the best checkpoint when fit ends; None writes none.

    Raises:
        ValueError: the number of batches is not one.
    """

    _learns_from_gradients = True

    def __init__(
        self, plan: PlanT, *, calibration: int | Iterable[Any] = 8, export: str | os.PathLike[str] | None = None
    ) -> None:
        super().__init__(export)
        if isinstance(calibration, bool) or (isinstance(calibration, int) and calibration < 1):
            raise ValueError(f"calibration must be a number of batches ≥ 1, or batches, got {calibration!r}")
        self._settings, self._calibration = plan, calibration

    @property
    def learner(self) -> Learner:
        """The learner of the running fit or the latest.

        Raises:
            RuntimeError: no fit has started in this process.
        """
        if not self.controllers:
            raise RuntimeError(f"{type(self).__name__} has no learner before fit starts{ELSEWHERE}")
        return self.controllers[0]  # type: ignore[no-any-return]

    def _begin(self) -> None:
        super()._begin()
        self._reports = WidthReports()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot work, and find the place among the callbacks."""
        if stage == "fit":
            self._refuse(trainer)
        super().setup(trainer, pl_module, stage)

    def _refuse(self, trainer: Trainer) -> None:
        """Refuse trainers in which learning would go wrong later.

        Raises:
            NotImplementedError: it has such a callback, or a scaler that would multiply what formats are learned from.
        """
        name = type(self).__name__
        freezing = [c for c in callbacks(trainer) if isinstance(c, _FINETUNING)]
        if freezing:
            raise NotImplementedError(
                f"{type(freezing[0]).__name__} unfreezes layers during fit, but {name} sets the formats of all layers "
                f"at the beginning: train the frozen network first, in a fit without {name}, or freeze nothing"
            )
        finders = [c for c in callbacks(trainer) if isinstance(c, _FINDERS)]
        if finders:
            raise NotImplementedError(
                f"{type(finders[0]).__name__} would learn formats in each of its trials, and change the rates at which "
                f"they are learned: run it in a trainer without {name}, and give its result to the module"
            )
        if self._learns_from_gradients and getattr(trainer.precision_plugin, "scaler", None) is not None:
            raise NotImplementedError(
                "a scaler multiplies the gradients from which activations learn their formats: use "
                'precision="bf16-mixed" or "32-true"'
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach to the module's optimizer."""
        name = type(self).__name__
        if len(trainer.optimizers) != 1:
            raise NotImplementedError(
                f"{name} needs one optimizer, but configure_optimizers returned {len(trainer.optimizers)}: "
                "train in a plain loop with a function of adapt.learned for each"
            )
        if not has_layers(trainer.optimizers[0], pl_module, self._settings.layers):
            raise without_layers(name)
        # The length of the training, and the data, are known once a checkpoint is restored. Asking for them now would
        # keep Lightning from restoring its place in the data.
        self.controllers.append(attach_plan(trainer.optimizers[0], pl_module, self._plan(trainer)))
        self._losses = Losses(trainer.optimizers, self.controllers)

    def _plan(self, trainer: Trainer) -> Plan:
        """Return the options of this fit."""
        return self._settings

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with what is known by now: the training's length, and its batches."""
        self._begin_training(trainer, pl_module)
        super().on_train_start(trainer, pl_module)

    def _begin_training(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Calibrate, unless the run resumes from a checkpoint."""
        if not self.learner.is_calibrated:
            given = self._calibration
            self.learner.calibrate(
                *calibration_of(trainer, pl_module, given) if isinstance(given, int) else (given, network_of(pl_module))
            )

    def _steps(self, trainer: Trainer, pl_module: LightningModule) -> int:
        """Return the optimizer steps of the training.

        Raises:
            ValueError: they do not follow from the trainer's epochs, or the training has no known end.
        """
        reason = None if trainer.max_epochs == -1 else why_steps_are_unknown(trainer, pl_module)
        if reason is not None:
            raise ValueError(
                f"{type(self).__name__} must know how many optimizer steps the training has, but {reason}: give the "
                "trainer max_steps=… and no max_epochs"
            )
        steps = trainer.estimated_stepping_batches
        if not math.isfinite(steps) or steps < 0:
            raise ValueError(
                f"{type(self).__name__} must know how long the training takes: give the trainer max_epochs or "
                "max_steps, and training data of a known length"
            )
        return int(steps)
