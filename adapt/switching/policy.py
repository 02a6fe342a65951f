"""The interface of a policy, the observation of a training step that it gets, and its state."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from adapt.numerics import Bounds, LayerFormat
from adapt.switching.bounds import ALL, within
from adapt.trace import Column


@dataclass(frozen=True)
class State:
    """The state of a policy between steps. Policies extend it with arrays [layers], numbers and strings.

    Attributes:
        formats: the format of each layer.
        gradients: number of finite gradients in each layer's running sum, int64 [layers]; 0 after a switch.
    """

    formats: tuple[LayerFormat, ...]
    gradients: NDArray[np.int64]

    def check(self) -> None:
        """Raise ValueError for a state that no run can reach; it may come from a file."""


@dataclass(frozen=True)
class Observation:
    """One optimizer step as a policy sees it.

    Attributes:
        loss: the step's loss including penalties, averaged over micro-batches; None if it was not observed.
        norms: ‖G‖₂ of each layer, float64 [layers]; meaningless where `seen` is False.
        norms_of_sums: ‖ΣG‖₂ of each layer's running sum including this gradient, float64 [layers].
        seen: True where the layer got a finite gradient, bool [layers].
        sound: True where the layer's master weights are all finite, bool [layers].
        weights: the master weights. They belong to the newest step, so a policy may only read them in a step in which,
            according to its `patience`, a layer can switch.
        sums: the running sums ΣG including this gradient, if `sums_gradients` is True; to be read only like `weights`.
        windows: the gradients in each running sum, oldest first, if `keeps_gradients` is True.
        l1, l2: α of each layer, [layers], and β of the penalties, which the loss includes and the gradients do not.
        measure_saturation: measures `saturated`.
        layer_bits: the fewest and the most bits of each layer's word; empty if the policy alone decides. The engine
            moves the formats of every policy within these bounds, but a policy that distributes bits must know them.
    """

    loss: float | None
    norms: NDArray[np.float64]
    norms_of_sums: NDArray[np.float64]
    seen: NDArray[np.bool_]
    sound: NDArray[np.bool_]
    weights: Sequence[Tensor]
    sums: Sequence[Tensor] = ()
    windows: Sequence[Sequence[Tensor]] = ()
    l1: Sequence[float] | NDArray[np.float64] = ()
    l2: float = 0.0
    measure_saturation: Callable[[], NDArray[np.float64]] | None = None
    layer_bits: Sequence[Bounds] = ()

    @cached_property
    def saturated(self) -> NDArray[np.float64]:
        """The share of each layer's master weights outside its format's range, float64 [layers]; 0 in float32.

        It is measured when read, which waits for the device, and like `weights` it belongs to the newest step.
        """
        return np.zeros(len(self.norms)) if self.measure_saturation is None else self.measure_saturation()

    @property
    def bounds(self) -> Sequence[Bounds]:
        """The fewest and the most bits of each layer's word, [layers]; by default 2 and 32."""
        return self.layer_bits or (ALL,) * len(self.norms)

    def confined(self, formats: Sequence[LayerFormat]) -> tuple[LayerFormat, ...]:
        """Return the formats in which the layers run if the policy chooses these."""
        return tuple(map(within, formats, self.bounds))


S = TypeVar("S", bound=State)


class Policy(Protocol[S]):
    """Decides when and how the precision of the layers changes: a pure function of (state, observation).

    A policy is a frozen dataclass of hyperparameters. It holds no state, so one policy object may serve several runs.

    These members are optional. `columns`, a mapping from names to `adapt.trace.Column`, adds columns to the trace; they
    are saved with it and appear in the loggers, TensorBoard and `adapt report`. `check_bounds(bounds, sizes)` raises
    ValueError if the policy cannot keep to the bounds of the layers' words, such as [(8, 8), (2, 32)], for layers with
    these numbers of weights. `for_layers(names)`, for a policy that treats layers by name, returns the policy for these
    layers in this order. With `channels = True` the policy sees the weights and sums of each layer as [channels,
    elements of a channel], output channels first, and may choose a `ChannelPrecision`.
    """

    @property
    def normalize_gradients(self) -> bool:
        """Divide each layer's gradient by its norm before the update."""

    @property
    def quantize_gradients(self) -> bool:
        """Quantise each layer's gradient stochastically to the layer's own format."""

    @property
    def sums_gradients(self) -> bool:
        """Keep the running sum ΣG of each layer: one more tensor per layer."""

    @property
    def samples_gradients(self) -> bool:
        """Add only the gradients of steps in which, according to `patience`, a layer can switch to ΣG."""

    @property
    def keeps_gradients(self) -> bool:
        """Also keep every gradient of the window: as many tensors per layer as the window is long."""

    @property
    def uses_loss(self) -> bool:
        """Whether the policy uses the loss."""

    def start(self, weights: Sequence[Tensor]) -> S:
        """Return the initial state for these master weights."""

    def patience(self, state: S) -> int:
        """Return for how many of the next steps no layer can switch, whatever the gradients."""

    def advance(self, state: S, observation: Observation) -> S:
        """Return the state after one step. `gradients` is 0 for a layer whose window ended in this step."""

    def record(self, state: S) -> dict[str, NDArray[Any]]:
        """Return values of the trace's optional columns and of `columns`, each [layers].

        Missing columns get their defaults.
        """


def for_layers(policy: Policy[S], names: Sequence[str]) -> Policy[S]:
    """Return the policy for layers with these names; most policies treat all layers alike.

    Raises:
        ValueError: the policy cannot handle one of them.
    """
    choose = getattr(policy, "for_layers", None)
    return policy if choose is None else choose(names)


def check_bounds(policy: Policy[Any], bounds: Sequence[Bounds], sizes: Sequence[int]) -> None:
    """Let a policy refuse bounds of the layers' words, if there are any; most policies accept all.

    Raises:
        ValueError: the policy cannot keep to them.
    """
    if bounds and (check := getattr(policy, "check_bounds", None)) is not None:
        check(bounds, sizes)


def columns_of(policy: Policy[Any]) -> Mapping[str, Column[Any]]:
    """Return the columns that the policy adds to the trace; none if it has no `columns`."""
    columns: Mapping[str, Column[Any]] = getattr(policy, "columns", {})
    return columns
