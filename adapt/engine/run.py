"""What the engine asks of a run: the interface that a policy's runs and those of learned formats share."""

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


class Hooked(Protocol):
    """What acts on the module's layers through hooks, beside the weights."""

    def follow_pin(self) -> None:
        """Behave as the pinned view asks."""

    def remove(self) -> None:
        """Remove the hooks."""


class Run(ABC):
    """The state of a run, and what one optimizer step does to it. It knows neither the optimizer nor its hooks.

    Attributes:
        step: optimizer steps begun so far.
        losses: the losses observed since the last step.
        pin: the view that a context asks for; all that acts on the module shares it.
        choice: which parameters are layers.
        awaited: names of frozen parameters that take part nevertheless, because a state that is to be loaded has them.
        fuses_sgd: whether `before_update` can make the update of torch's SGD itself.
    """

    fuses_sgd: ClassVar[bool] = False

    def __init__(self, choice: Choice) -> None:
        self.step = 0
        self.losses = MicroLosses()
        self.pin = Pin()
        self.choice = choice
        self.awaited: set[str] = set()

    @property
    @abstractmethod
    def banks(self) -> list[Masters]:
        """The masters: first those of the layers, then any others."""

    @property
    @abstractmethod
    def hooked(self) -> list[Hooked]:
        """What acts on the module's layers through hooks."""

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
        """Take in the layers that are new in `layers`, which begins with the present ones."""

    @abstractmethod
    def follow(self, parameters: Mapping[str, Tensor], optimizer: Optimizer, module: nn.Module | None) -> None:
        """Let everything beside the layers follow them: biases, and hooks on the module.

        Args:
            parameters: every parameter that has a name.
            optimizer: the optimizer that updates some of them.
            module: the module that owns them, if it is known.
        """

    @abstractmethod
    def before_update(self, take_over: TakeOver | None) -> bool:
        """Look at the gradients and prepare them and the parameters for the optimizer's update, or make the update.

        Args:
            take_over: returns the update that the optimizer is about to make, if it can be made here; None if not.

        Returns:
            Whether the layers have been updated.
        """

    @abstractmethod
    def after_update(self) -> None:
        """W ← p, p ← Ŵ."""

    @abstractmethod
    def renew(self) -> None:
        """p ← Ŵ from the masters, whatever p holds."""

    def begin_anew(self, new: Sequence[Collection[int]]) -> list[str]:
        """Fit the formats to weights that were loaded into parameters, whose masters they are by now.

        Args:
            new: for each bank, the indices of these parameters.

        Returns:
            The layers whose formats stay as they are although others would fit.
        """
        return [self.banks[0].names[i] for i in sorted(new[0])]

    @abstractmethod
    def state_dict(self, optimized: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return all of it in plain containers, numbers and tensors. Between micro-batches, their gradients too.

        Args:
            optimized: every parameter of the optimizer, by name.
        """

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any], optimized: Mapping[str, Tensor], *, strict: bool) -> None:
        """Go on from `state_dict`. All of it is checked before anything changes.

        Raises:
            ValueError: the state is of another kind, version or network.
        """
