"""`Run`: the interface between the engine and its two kinds of runs, with a policy or with learned formats."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from adapt.engine.fused_sgd import TakeOver
from adapt.engine.losses import MicroLosses
from adapt.layers.choice import Choice
from adapt.layers.view import Pin
from adapt.numerics import Format
from adapt.trace import Trace
from adapt.weights.masters import Masters


class HookedPart(Protocol):
    """A part of a run that acts on the module's layers through hooks."""

    def follow_pin(self) -> None:
        """Adjust to the view that is pinned now."""

    def remove(self) -> None:
        """Remove the hooks."""


class Run(ABC):
    """The state of a run, and what one optimizer step does to it. It knows neither the optimizer nor its hooks.

    Attributes:
        step: the number of optimizer steps begun so far.
        losses: the losses observed since the last step.
        pin: the view that a context asks for, shared by everything that acts on the module.
        choice: selects the parameters that are layers.
        included_frozen: names of frozen parameters that are included because a state about to be loaded has them.
        fuses_sgd: whether `before_update` can make the update of torch's SGD itself.
    """

    fuses_sgd: ClassVar[bool] = False

    def __init__(self, choice: Choice) -> None:
        self.step = 0
        self.losses = MicroLosses()
        self.pin = Pin()
        self.choice = choice
        self.included_frozen: set[str] = set()

    @property
    @abstractmethod
    def all_masters(self) -> list[Masters]:
        """The masters of the layers, then any others."""

    @property
    @abstractmethod
    def hooked_parts(self) -> list[HookedPart]:
        """The parts that act on the module's layers through hooks."""

    @property
    @abstractmethod
    def formats(self) -> dict[str, Format]:
        """Formats of weights and biases by parameter name, of activations by module path and ".input" or ".output"."""

    @property
    @abstractmethod
    def trace(self) -> Trace:
        """What happened in every step so far. Reading it waits for the device."""

    @abstractmethod
    def join(self, layers: Mapping[str, Tensor]) -> None:
        """Add the layers that are new in `layers`, which starts with the present ones."""

    @abstractmethod
    def update_parts(self, parameters: Mapping[str, Tensor], optimizer: Optimizer, module: nn.Module | None) -> None:
        """Update the biases, and the hooks on the module, to match the present layers.

        Args:
            parameters: every named parameter.
            optimizer: the optimizer that updates some of them.
            module: the module that owns them, if known.
        """

    @abstractmethod
    def before_update(self, take_over: TakeOver | None) -> bool:
        """Prepare gradients and parameters for the optimizer's update, or make the update here.

        Args:
            take_over: returns the update that the optimizer is about to make, if it can be made here; None if the
                optimizer always makes it.

        Returns:
            Whether the layers have been updated.
        """

    @abstractmethod
    def after_update(self) -> None:
        """W ← p and p ← Ŵ."""

    @abstractmethod
    def requantize(self) -> None:
        """p ← Ŵ from the masters, whatever p holds."""

    def refit(self, new: Sequence[Collection[int]]) -> list[str]:
        """Fit the formats to weights that were loaded into parameters and have become masters.

        Args:
            new: for each of `all_masters`, the indices of these parameters.

        Returns:
            The layers that keep their formats although others would fit.
        """
        return [self.all_masters[0].names[i] for i in sorted(new[0])]

    def misfits(self, written: Collection[int]) -> list[str]:
        """Return the layers among those that other code has written whose formats neither fit them nor follow soon."""
        return []

    @abstractmethod
    def state_dict(self, optimized: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return the whole state in plain containers, numbers and tensors; between micro-batches, also the gradients.

        Args:
            optimized: every parameter of the optimizer, by name.
        """

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any], optimized: Mapping[str, Tensor], *, strict: bool) -> None:
        """Resume from `state_dict`. All of it is checked before anything changes.

        Raises:
            ValueError: the state is of another kind, version or network.
        """
