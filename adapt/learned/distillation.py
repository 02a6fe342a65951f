"""Learn from a teacher's predictions in addition to, or instead of, the labels (Schaefer et al. 4.4.2)."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapt.arguments import check_between, check_option

MODES = ("soft", "penalty")

_LOWEST_TEMPERATURE = 1e-6
"""The lowest temperature; far below it, logits divided by it overflow float32."""


def soft_labels(logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the cross entropy with a teacher's probabilities as targets, times temperature²; a 0-dim tensor.

    Args:
        logits, teacher_logits: [batch, classes] or [batch, classes, …].
        temperature: divides both before the softmax.
    """
    targets = F.softmax(teacher_logits.detach() / temperature, dim=1)
    return F.cross_entropy(logits / temperature, targets) * temperature**2


def alignment(logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return KL(teacher ‖ student) in nats, averaged over the batch, times temperature²; zero if both agree.

    Args:
        logits, teacher_logits, temperature: as in `soft_labels`.
    """
    targets = F.log_softmax(teacher_logits.detach() / temperature, dim=1)
    predictions = F.log_softmax(logits / temperature, dim=1)
    return (targets.exp() * (targets - predictions)).sum(1).mean() * temperature**2


@dataclass(frozen=True)
class Distillation:
    """A teacher and how its predictions count: train with the loss `distillation(loss, logits, *inputs)`.

    Args:
        teacher: a module that returns logits. It runs in evaluation mode and without gradients, and is not changed.
        mode: "soft" trains on the teacher's probabilities instead of the loss; "penalty" adds the divergence of the
            predictions from the teacher's to the loss.
        weight: weight of the penalty, at least 0.
        temperature: divides the logits, at least 1e-6.

    Raises:
        TypeError, ValueError: an argument is invalid.
    """

    teacher: nn.Module
    mode: str = "penalty"
    weight: float = 1.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.teacher, nn.Module):
            raise TypeError(f"teacher must be a torch.nn.Module, got {type(self.teacher).__name__}")
        check_option("mode", self.mode, MODES)
        check_between("weight", self.weight, 0, math.inf)
        check_between("temperature", self.temperature, _LOWEST_TEMPERATURE, math.inf)

    def __call__(self, loss: Tensor, logits: Tensor, *inputs: Any) -> Tensor:
        """Return the loss to train with, given the student's loss and logits for these inputs.

        Raises:
            ValueError: the teacher returns logits of another shape.
        """
        # Saved for each module, because parts of a teacher may be frozen in evaluation mode.
        modes = [(module, module.training) for module in self.teacher.modules()]
        self.teacher.eval()
        try:
            with torch.no_grad():
                wanted = self.teacher(*inputs)
        finally:
            for module, training in modes:
                module.training = training
        if wanted.shape != logits.shape:
            raise ValueError(
                f"the teacher returns logits {tuple(wanted.shape)}, the student {tuple(logits.shape)}: both need the "
                "same classes"
            )
        if self.mode == "soft":
            return soft_labels(logits, wanted, self.temperature)
        return loss + self.weight * alignment(logits, wanted, self.temperature)
