"""Inputs to calibrate learned widths: those that forward takes from a training batch, or else whole training steps."""

import contextlib
import copy
import inspect
from collections.abc import Iterator
from typing import Any

from torch import nn
from torchmetrics import Metric

from adapt.lightning.forward_inputs import batch_inputs, network_of
from adapt.lightning.loaders import first_batches
from adapt.lightning.packages import LightningModule, Trainer
from adapt.perfmodel import operations
from adapt.perfmodel.inputs import samples_of


def calibration_of(trainer: Trainer, pl_module: LightningModule, count: int) -> tuple[list[Any], nn.Module]:
    """Return what to calibrate with: tuples of positional arguments, and the module that takes them.

    That is the network and the part of each of the first training batches that its forward takes, as many arguments as
    `example_input_array` has. Where forward takes no part of a batch, it is the module's training_step.

    Raises:
        ValueError: there are no batches, they can be read only once, or neither forward nor training_step can run.
    """
    batches = first_batches(trainer, pl_module, count)
    if not batches:
        raise ValueError("activations are calibrated with training batches, but the training data are empty")
    example = pl_module.example_input_array
    reason = "it has no forward and several submodules with parameters"
    with contextlib.suppress(ValueError):
        network = network_of(pl_module)
        reason = "its forward takes no part of a training batch"
        for choice, inputs in enumerate(batch_inputs(network, batches[0], example)):
            try:
                samples_of(inputs, None)
                operations(network, *inputs)
            except (TypeError, ValueError, RuntimeError):
                continue
            return [list(batch_inputs(network, batch, example))[choice] for batch in batches], network
    steps = TrainingSteps(pl_module)
    if not pl_module.automatic_optimization or not steps.takes_batches:
        raise ValueError(
            f"the activations of {type(pl_module).__name__} could not be calibrated: {reason}, and its training_step "
            "cannot run without training. Give inputs of its forward by calibration=[…]"
        )
    return [(batch, index) for index, batch in enumerate(batches)], steps


class TrainingSteps(nn.Module):
    """Runs a LightningModule's training_step as a forward pass: nothing is logged, and what it keeps is put back."""

    def __init__(self, pl_module: LightningModule) -> None:
        super().__init__()
        self.module = pl_module
        taken = inspect.signature(pl_module.training_step).parameters
        self.takes_batches = "dataloader_iter" not in taken
        self._indexed = len(taken) > 1

    def forward(self, batch: Any, index: int) -> None:
        """Run the step of one batch."""
        module = self.module
        with _attributes_restored(module):
            for name in ("log", "log_dict"):
                vars(module)[name] = lambda *args, **kwargs: None
            module.training_step(*((batch, index) if self._indexed else (batch,)))
        for part in module.modules():
            if isinstance(part, Metric):
                part.reset()


@contextlib.contextmanager
def _attributes_restored(module: nn.Module) -> Iterator[None]:
    """Restore on exit an object's attributes, and the contents of its lists, sets and dictionaries."""
    before = dict(vars(module))
    held = [(one, copy.copy(one)) for one in before.values() if type(one) in (list, dict, set)]
    try:
        yield
    finally:
        vars(module).clear()
        vars(module).update(before)
        for one, content in held:
            one.clear()
            one.extend(content) if isinstance(one, list) else one.update(content)
