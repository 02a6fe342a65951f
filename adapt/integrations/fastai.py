"""Adaptive precision in fastai's Learner."""

from typing import Any, Unpack

from fastai.callback.core import Callback

from adapt.adaptive.attachment import attach
from adapt.adaptive.controller import Controller
from adapt.adaptive.options import Options
from adapt.switching.policy import Policy


class AdaptivePrecisionCallback(Callback):  # type: ignore[misc]
    """Trains the model of a fastai Learner whose `opt_func` makes an `OptimWrapper` of a torch optimizer.

    Later calls of `fit` continue with the same controller as long as the Learner keeps its optimizer. `learn.save`
    includes its state; to resume from it in a new Learner, call `learn.create_opt()` and `attach()` before
    `learn.load`.

    Args:
        policy, options: as in `adapt.attach`.

    Attributes:
        controller: the controller of the Learner's optimizer; None before the first fit.
    """

    def __init__(self, policy: Policy[Any] | None = None, **options: Unpack[Options]) -> None:
        self.controller: Controller | None = None
        self._policy, self._options = policy, options

    def attach(self) -> None:
        """Attach to the Learner's present optimizer, unless that is done."""
        optimizer = self.learn.opt.opt
        if self.controller is None or self.controller.optimizer is not optimizer:
            if self.controller is not None:
                self.controller.detach()
            self.controller = attach(optimizer, self.learn.model, self._policy, **self._options)

    def before_fit(self) -> None:
        """Attach."""
        self.attach()

    def after_loss(self) -> None:
        """Observe the loss of a training batch."""
        if self.learn.training and self.controller is not None:
            self.controller.observe(self.learn.loss_grad)
