"""The callbacks for LSQ and AQT, whose word lengths are given."""

import os
from collections.abc import Iterable
from typing import Any, Unpack

from adapt.learned.keywords import AqtOptions, StepOptions
from adapt.learned.options import FixedWidths, MaximumRanges
from adapt.lightning.learner_callback import LearnerCallback
from adapt.lightning.packages import LightningModule, Trainer
from adapt.switching.fixed import FOREVER


class LSQ(LearnerCallback[FixedWidths]):
    """Trains a LightningModule at given bit widths with learned steps. Nothing in the module changes.

    When fit starts, the module's one optimizer is attached to (see `adapt.learned.attach_lsq`); when training starts,
    a few of its batches calibrate the activations. The learning rate is the module's. Everything else is as in
    `LearnedBitwidth`: what is logged and saved, exact resuming, what stays after fit, and what is refused.

    Args:
        weight_bits: 1 to 8. One bit is ±d.
        activation_bits: 1 to 8; None leaves activations in float32.
        calibration, export: as in `LearnedBitwidth`.
        options: per_channel, power_of_two, momentum, weight_scaling, activation_scaling, delta, quantize_biases, layers
            and layer_bits, as in `adapt.learned.attach_lsq`.

    Raises:
        TypeError, ValueError: an option is invalid.
    """

    def __init__(
        self,
        weight_bits: int,
        activation_bits: int | None = None,
        *,
        calibration: int | Iterable[Any] = 8,
        export: str | os.PathLike[str] | None = None,
        **options: Unpack[StepOptions],
    ) -> None:
        plan = FixedWidths(weight_bits=weight_bits, activation_bits=activation_bits, steps=None, **options)
        super().__init__(plan, calibration=calibration, export=export)


class AQT(LearnerCallback[MaximumRanges]):
    """Trains a LightningModule at given bit widths, in ranges that follow from the largest magnitudes.

    When fit starts, the module's one optimizer is attached to (see `adapt.learned.attach_aqt`). Activations stay
    float32 in the first fifth of the training, whose length is the trainer's. The learning rate is the module's.
    Everything else is as in `LearnedBitwidth`: what is logged and saved, exact resuming, what stays after fit, and what
    is refused, except that a scaler of half precision does no harm.

    Args:
        export: as in `LearnedBitwidth`.
        options: weight_bits, activation_bits, first_bits, last_bits, activations_from, decay, layers and layer_bits, as
            in `adapt.learned.attach_aqt`.

    Raises:
        TypeError, ValueError: an option is invalid.
    """

    _learns_from_gradients = False

    def __init__(self, *, export: str | os.PathLike[str] | None = None, **options: Unpack[AqtOptions]) -> None:
        # The training's length becomes known in fit.
        super().__init__(MaximumRanges(steps=FOREVER, **options), export=export)

    def _begin_training(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell the learner when to begin with the activations."""
        self.learner.use_steps(self._steps(trainer, pl_module))
