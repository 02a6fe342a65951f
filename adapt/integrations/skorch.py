"""Adaptive precision in skorch's NeuralNet."""

from typing import Any, Unpack

import skorch.callbacks

from adapt.adaptive.attachment import attach
from adapt.adaptive.controller import Controller
from adapt.adaptive.options import Options
from adapt.switching.policy import Policy


class AdaptivePrecision(skorch.callbacks.Callback):  # type: ignore[misc]
    """Trains the module of a skorch NeuralNet: `NeuralNet(…, callbacks=[AdaptivePrecision(policy)])`.

    `net.save_params(f_params=…, f_optimizer=…)` saves the run's state with the optimizer's. Load it into a net
    whose training has begun, or call `net.initialize()` and `attach(net)` first.

    Args:
        policy, options: as in `adapt.attach`.

    Attributes:
        controller: the controller of the net's optimizer; None before training begins.
    """

    def __init__(self, policy: Policy[Any] | None = None, **options: Unpack[Options]) -> None:
        self.controller: Controller | None = None
        self.policy, self.options = policy, options

    def attach(self, net: Any) -> None:
        """Attach to the net's present optimizer, unless that is done, and watch its criterion."""
        if self.controller is None or self.controller.optimizer is not net.optimizer_:
            if self.controller is not None:
                self.controller.detach()
            self.controller = attach(net.optimizer_, net.module_, self.policy, **self.options)
            self.controller.watch(net.criterion_)

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        """Attach."""
        self.attach(net)
