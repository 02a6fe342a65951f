"""What learned bit widths need of a fit: its length, batches to calibrate with, and a way to add a teacher's loss."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from adapt.arguments import is_number
from adapt.learned.distillation import Distillation
from adapt.learned.learner import Learner
from adapt.learned.options import LearnedWidths
from adapt.learned.phases import Phases
from adapt.lightning.packages import LightningModule


def check_phases(phases: Any) -> tuple[float, float, float]:
    """Return phases that are three shares which sum to 1, or three numbers of epochs.

    Raises:
        TypeError, ValueError: they are neither.
    """
    values = tuple(phases) if isinstance(phases, Sequence) and not isinstance(phases, str) else ()
    if len(values) != 3 or not all(map(is_number, values)):
        raise TypeError(
            f"phases must be three shares of the training or numbers of epochs, for pre-training, learning and "
            f"fine-tuning, got {phases!r}"
        )
    if min(values) < 0 or not values[1] > 0:
        raise ValueError(f"phases must not be negative and learning above 0, got {phases!r}")
    if not all(isinstance(v, int) for v in values) and abs(sum(values) - 1) > 1e-6:
        raise ValueError(f"phases must be shares that sum to 1, or whole numbers of epochs, got {phases!r}")
    return values


def in_steps(phases: tuple[float, float, float], steps: int, epochs: int | None) -> Phases:
    """Return the phases of a training of this many optimizer steps.

    Args:
        phases: from `check_phases`.
        steps: optimizer steps.
        epochs: epochs of the trainer; None where they do not matter.

    Raises:
        ValueError: the trainer's epochs are not those of the phases.
    """
    whole = all(isinstance(phase, int) for phase in phases)
    total = sum(phases)
    if whole and epochs is not None and epochs != total:
        raise ValueError(f"phases sum to {total} epochs, but the trainer has max_epochs={epochs}: let them agree")
    first, second = (round(sum(phases[: i + 1]) / total * steps) for i in range(2))
    # A short training still learns.
    first = min(first, max(steps - 1, 0))
    second = max(second, first + 1)
    return Phases(first, second - first, max(steps - second, 0))


def unfinished_learning(learner: Learner) -> str:
    """Return a warning about a training that ends now; "" if it made no step, or its widths were cut to the budgets."""
    plan, size = learner.plan, learner.size._asdict()
    assert isinstance(plan, LearnedWidths)
    if not 0 < learner.step < plan.phases.settling:
        return ""
    budgets = {"weight": plan.weight_budget, "activation": plan.activation_budget}
    sizes = []
    for what, budget in budgets.items():
        if budget is not None:
            unit, given = ("bits", budget.bits) if budget.kilobytes is None else ("kilobytes", budget.kilobytes)
            sizes.append(f"{what}s have {size[f'{what}_{unit}']:.4g} {unit} of {given:.4g}")
    return (
        f"training ended in {learner.phase}, after {learner.step} steps, before learning brought the widths to the "
        f"budgets in step {plan.phases.settling}, so {' and '.join(sizes)}: train on until then, or use phases that "
        "end sooner"
    )


class DistilledTraining:
    """Makes training_step return the loss of a distillation, until `end`.

    Args:
        pl_module: the module whose training_step to replace.
        network: the module whose forward returns the student's logits in training_step.
        distillation: the teacher, moved to the module's device.
    """

    def __init__(self, pl_module: LightningModule, network: nn.Module, distillation: Distillation) -> None:
        distillation.teacher.to(pl_module.device)
        self._module, self._distillation = pl_module, distillation
        self._passes: list[tuple[tuple[Any, ...], Any]] = []
        self._inside = False
        self._handle = network.register_forward_hook(self._look)
        own = pl_module.training_step

        @functools.wraps(own)
        def training_step(*args: Any, **kwargs: Any) -> Any:
            self._inside = True
            try:
                return self._listen(own(*args, **kwargs))
            finally:
                self._inside = False
                self._passes.clear()

        pl_module.training_step = training_step  # type: ignore[method-assign]

    def end(self) -> None:
        """Restore training_step."""
        self._handle.remove()
        vars(self._module).pop("training_step", None)

    def _look(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._inside and isinstance(output, Tensor):
            self._passes.append((args, output))

    def _listen(self, result: Any) -> Any:
        loss = result["loss"] if isinstance(result, Mapping) else result
        if loss is None:
            return result
        if not self._passes:
            raise RuntimeError(
                "distillation saw no forward pass that returns logits in training_step: call self(…) there, or the "
                "module's only submodule with parameters, with positional arguments"
            )
        inputs, logits = self._passes[-1]
        loss = self._distillation(loss, logits, *inputs)
        return {**result, "loss": loss} if isinstance(result, Mapping) else loss
