"""What a policy is, what it is shown of a training step, and what it answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, TypeVar, get_args, get_type_hints

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapt.numerics import LayerFormat, pack_formats, unpack_formats

Format = LayerFormat


@dataclass(frozen=True)
class State:
    """What a policy remembers between steps. Policies extend it with arrays [layers], numbers and strings.

    Attributes:
        formats: the format of each layer.
        gradients: finite gradients that each layer's running sum holds, int64 [layers]; 0 after a switch.
    """

    formats: tuple[Format, ...]
    gradients: NDArray[np.int64]

    def check(self) -> None:
        """Refuse, by a ValueError, what no run comes to: a state may come out of a file."""


@dataclass(frozen=True)
class Observation:
    """One optimizer step as a policy sees it.

    Attributes:
        loss: the step's loss, penalties included, averaged over micro-batches; None when it was not shown.
        norms: ‖G‖₂ of each layer, float64 [layers]; meaningless where `seen` is False.
        norms_of_sums: ‖ΣG‖₂ of each layer's running sum, this gradient included, float64 [layers].
        seen: True where the layer got a finite gradient, bool [layers].
        sound: True where the layer's master weights are all finite, bool [layers].
        weights: the master weights. They belong to the newest step: a policy may read them only in a step that
            its `patience` named as one in which a layer can switch.
        sums: the running sums ΣG, this gradient included, where `sums_gradients` asks for them; read them as `weights`.
        windows: the gradients behind each running sum, oldest first, where `keeps_gradients` asks for them.
        l1, l2: α of each layer, [layers], and β of the penalties that the loss includes and the gradients do not.
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


S = TypeVar("S", bound=State)


class Policy(Protocol[S]):
    """When, and to what, the precision of the layers moves: a pure function of (state, observation).

    A policy is a frozen dataclass of hyperparameters. It holds no state of its own, so one policy object may
    serve several runs.
    """

    @property
    def normalize_gradients(self) -> bool:
        """Divide each layer's gradient by its norm before the update."""

    @property
    def quantize_gradients(self) -> bool:
        """Quantise each layer's gradient stochastically in the layer's own format."""

    @property
    def sums_gradients(self) -> bool:
        """Keep the running sum ΣG of each layer: one more tensor per layer."""

    @property
    def samples_gradients(self) -> bool:
        """Add to ΣG only the gradients of steps in which, by `patience`, a layer can switch, instead of all."""

    @property
    def keeps_gradients(self) -> bool:
        """Keep every gradient of the window as well: as many tensors per layer as the window is long."""

    @property
    def uses_loss(self) -> bool:
        """Whether the loss matters to the policy."""

    def start(self, weights: Sequence[Tensor]) -> S:
        """Answer the state in which training starts, for master weights `weights`."""

    def patience(self, state: S) -> int:
        """Answer how many of the next steps certainly switch no layer, whatever their gradients."""

    def advance(self, state: S, observation: Observation) -> S:
        """Answer the state after one step. A layer's `gradients` is 0 where its window ended in this step."""

    def record(self, state: S) -> dict[str, NDArray[Any]]:
        """Answer the policy's columns of the trace, of lookback, resolution, diversity and divergence, [layers]."""


def carry(old: S, fresh: S, places: Mapping[int, int]) -> S:
    """Answer `fresh` with all that is not per layer, and the layers in `places`, taken over from `old`.

    Args:
        old: the state to keep.
        fresh: a state of the same policy for another set of layers.
        places: index in `fresh` → index in `old` of the layers that both have.
    """
    changes: dict[str, Any] = {}
    for field in fields(fresh):
        before, after = getattr(old, field.name), getattr(fresh, field.name)
        if field.name == "formats":
            changes["formats"] = tuple(before[places[i]] if i in places else value for i, value in enumerate(after))
        elif isinstance(after, np.ndarray):
            merged = after.copy()
            for i, j in places.items():
                merged[i] = before[j]
            changes[field.name] = merged
        else:
            changes[field.name] = before
    return replace(fresh, **changes)


def pack(state: State) -> dict[str, Any]:
    """Answer the state as plain lists, numbers, strings and tensors, fit for `torch.load(weights_only=True)`."""
    packed: dict[str, Any] = {}
    for field in fields(state):
        value = getattr(state, field.name)
        if field.name == "formats":
            packed["formats"] = pack_formats(value)
        elif isinstance(value, np.ndarray):
            packed[field.name] = torch.from_numpy(value.copy())
        else:
            packed[field.name] = list(value) if isinstance(value, tuple) else value
    return packed


def unpack(packed: Mapping[str, Any], fresh: S, layers: int) -> S:
    """Answer the state that `pack` wrote, for `layers` layers; `fresh` is a state of the same policy.

    Raises:
        ValueError: a field is missing, unknown, of another kind or size than the policy's, or holds what no run comes
            to.
    """
    names = {field.name for field in fields(fresh)}
    if names != set(packed):
        raise ValueError(f"the policy's state should have the fields {sorted(names)}, got {sorted(packed)}")
    changes: dict[str, Any] = {}
    for name in names:
        value, model = packed[name], getattr(fresh, name)
        if name == "formats":
            if not isinstance(value, list) or len(value) != layers:
                raise ValueError(
                    f"the policy's state should list a format for each of {layers} layers, got {value!r:.80}"
                )
            changes[name] = unpack_formats(value)
        elif isinstance(model, np.ndarray):
            array = value.numpy() if isinstance(value, Tensor) else None
            if array is None or array.dtype != model.dtype or array.shape != (layers, *model.shape[1:]):
                raise ValueError(f"the policy's {name!r} should be {model.dtype} [{layers}], got {value!r:.80}")
            if np.isnan(array).any() and not np.isnan(model).any():
                raise ValueError(f"the policy's {name!r} should be numbers, but holds NaN")
            changes[name] = array.copy()
        elif isinstance(model, tuple):
            kind = get_args(get_type_hints(type(fresh))[name])[0]
            if not isinstance(value, list) or not all(type(item) is kind for item in value):
                raise ValueError(f"the policy's {name!r} should be a list of {kind.__name__}, got {value!r:.80}")
            changes[name] = tuple(value)
        else:
            if type(value) is not type(model):
                raise ValueError(f"the policy's {name!r} should be a {type(model).__name__}, got {value!r:.80}")
            changes[name] = value
    state = replace(fresh, **changes)
    state.check()
    return state
