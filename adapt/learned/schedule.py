"""Learning rates that rise and fall over the training, unless other code sets them.

Schaefer et al. begin them anew in each phase. One rise and fall over all phases gave a ResNet-20 at 3 bits of weights
and activations, tuned for an epoch, 1.3 points more.
"""

from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from adapt import user_warnings
from adapt.layers.optimizers import has_plateau_scheduler, has_scheduler
from adapt.learned.options import Plan
from adapt.learned.phases import rate

_PEAK = "initial_lr"
"""Key of a group's peak rate: the one that torch's schedulers use, so it is saved in the optimizer's state."""


class Schedule:
    """Sets the learning rates of an optimizer's groups before each step, until other code sets one.

    Args:
        optimizer: the optimizer; its rates at the beginning are the peaks.
        plan: its `is_scheduled` says whether to set rates at all.
    """

    def __init__(self, optimizer: Optimizer, plan: Plan) -> None:
        self._optimizer, self._is_on = optimizer, plan.is_scheduled
        self._written: list[float] | None = None
        self._is_first = True

    @property
    def _rates(self) -> list[float]:
        return [float(group["lr"]) for group in self._optimizer.param_groups]

    def begin(self) -> None:
        """Take the present rates as peaks, unless the optimizer has a scheduler."""
        if not self._is_on:
            return
        if has_scheduler(self._optimizer) or has_plateau_scheduler(self._optimizer):
            self._leave_to_user("the optimizer has a learning-rate scheduler")
            return
        for group in self._optimizer.param_groups:
            group[_PEAK] = float(group["lr"])
        self._written = self._rates

    def forget(self) -> None:
        """Accept whatever rates come next, as after loading a state."""
        self._written = None

    def step(self, plan: Plan, step: int) -> float:
        """Set the rates for the step with this number (from 0), and return that of the first group."""
        groups = self._optimizer.param_groups
        if self._is_on:
            if has_scheduler(self._optimizer) or (self._is_first and has_plateau_scheduler(self._optimizer)):
                self._leave_to_user("a learning-rate scheduler was made for the optimizer")
            elif self._written is not None and self._rates != self._written:
                self._leave_to_user("a learning rate was changed between two steps")
                for group in groups:
                    group.pop(_PEAK, None)
            elif not any(_PEAK in group for group in groups):
                self._leave_to_user("the state that was loaded is of a run whose learning rates were left to its user")
        if self._is_on:
            length = plan.steps or 1
            for group in groups:
                _set(group, rate(min(step, length - 1), length, plan.warmup))
            self._written = self._rates
        self._is_first = False
        return float(groups[0]["lr"])

    def _leave_to_user(self, reason: str) -> None:
        self._is_on = False
        user_warnings.warn(
            f"{reason}, so from here on the learning rates are left to you and do not rise and fall over the training: "
            "pass schedule=False to attach, or no steps to attach_lsq, if you want this; otherwise use no scheduler "
            "and change no rate after attaching"
        )


def _set(group: dict[str, Any], share: float) -> None:
    peak = float(group.setdefault(_PEAK, float(group["lr"])))
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(peak * share)
    else:
        group["lr"] = peak * share
