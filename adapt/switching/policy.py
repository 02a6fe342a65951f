"""What a policy is, what it sees of a training step, and what it returns."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, replace
from functools import cached_property
from typing import Any, Protocol, TypeVar, get_args, get_type_hints

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapt.numerics import LayerFormat, pack_formats, unpack_formats
from adapt.switching.bounds import ALL, Bounds, within
from adapt.trace import Column


@dataclass(frozen=True)
class State:
    """What a policy remembers between steps. Policies extend it with arrays [layers], numbers and strings.

    Attributes:
        formats: the format of each layer.
        gradients: finite gradients that each layer's running sum holds, int64 [layers]; 0 after a switch.
    """

    formats: tuple[LayerFormat, ...]
    gradients: NDArray[np.int64]

    def check(self) -> None:
        """Raise ValueError for a state that no run can reach; it may come from a file."""


@dataclass(frozen=True)
class Observation:
    """One optimizer step as a policy sees it.

    Attributes:
        loss: the step's loss, penalties included, averaged over micro-batches; None if it was not observed.
        norms: ‖G‖₂ of each layer, float64 [layers]; meaningless where `seen` is False.
        norms_of_sums: ‖ΣG‖₂ of each layer's running sum, this gradient included, float64 [layers].
        seen: True where the layer got a finite gradient, bool [layers].
        sound: True where the layer's master weights are all finite, bool [layers].
        weights: the master weights. They are those of the newest step, so a policy may read them only in a step in
            which, by its `patience`, a layer can switch.
        sums: the running sums ΣG, this gradient included, if `sums_gradients` asks for them; to be read as `weights`.
        windows: the gradients behind each running sum, oldest first, if `keeps_gradients` asks for them.
        l1, l2: α of each layer, [layers], and β of the penalties that the loss includes and the gradients do not.
        measure_saturation: measures `saturated`.
        layer_bits: the fewest and the most bits of each layer's word; empty where the policy alone decides. The engine
            moves the formats of every policy into these bounds, but a policy that shares bits out has to know them.
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
        """The share of each layer's master weights outside of its format's range, float64 [layers]; 0 in float32.

        It is measured when it is read, which waits for the device, and belongs to the newest step, as `weights` does.
        """
        return np.zeros(len(self.norms)) if self.measure_saturation is None else self.measure_saturation()

    @property
    def bounds(self) -> Sequence[Bounds]:
        """The fewest and the most bits of each layer's word, [layers], whether the user gave them or not."""
        return self.layer_bits or (ALL,) * len(self.norms)

    def confined(self, formats: Sequence[LayerFormat]) -> tuple[LayerFormat, ...]:
        """Return the formats in which the layers ran, if the policy chose these."""
        return tuple(map(within, formats, self.bounds))


S = TypeVar("S", bound=State)


class Policy(Protocol[S]):
    """When, and to what, the precision of the layers moves: a pure function of (state, observation).

    A policy is a frozen dataclass of hyperparameters. It holds no state of its own, so one policy object may
    serve several runs.

    It may have an attribute `columns`, a mapping from names to `adapt.trace.Column`: columns of the trace beside those
    that every trace has. They are saved with the trace and go to the loggers, TensorBoard and `adapt report`. And it
    may have a method `check_bounds(bounds, sizes)`, which raises ValueError where it cannot do with the bounds of the
    layers' words, such as [(8, 8), (2, 32)], for layers of so many weights. A policy that treats layers by name has a
    method `for_layers(names)`, which returns the policy that decides on these layers in this order.
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
        """Add to ΣG only the gradients of steps in which, by `patience`, a layer can switch, not all."""

    @property
    def keeps_gradients(self) -> bool:
        """Keep every gradient of the window as well: as many tensors per layer as the window is long."""

    @property
    def uses_loss(self) -> bool:
        """Whether the loss matters to the policy."""

    def start(self, weights: Sequence[Tensor]) -> S:
        """Return the state in which training starts, for these master weights."""

    def patience(self, state: S) -> int:
        """Return how many of the next steps certainly switch no layer, whatever their gradients."""

    def advance(self, state: S, observation: Observation) -> S:
        """Return the state after one step. A layer's `gradients` is 0 where its window ended in this step."""

    def record(self, state: S) -> dict[str, NDArray[Any]]:
        """Return values of the trace, each [layers]: of its lookback, resolution, diversity, divergence and `columns`.

        Columns that are left out get their defaults.
        """


def for_layers(policy: Policy[S], names: Sequence[str]) -> Policy[S]:
    """Return the policy for layers of these names; most treat all layers alike.

    Raises:
        ValueError: it cannot decide on one of them.
    """
    choose = getattr(policy, "for_layers", None)
    return policy if choose is None else choose(names)


def check_bounds(policy: Policy[Any], bounds: Sequence[Bounds], sizes: Sequence[int]) -> None:
    """Let a policy refuse bounds of the layers' words, if there are any; most take all.

    Raises:
        ValueError: it cannot keep to them.
    """
    if bounds and (check := getattr(policy, "check_bounds", None)) is not None:
        check(bounds, sizes)


def columns_of(policy: Policy[Any]) -> Mapping[str, Column[Any]]:
    """Return the columns of the trace that the policy brings; none if it says nothing of them."""
    columns: Mapping[str, Column[Any]] = getattr(policy, "columns", {})
    return columns


def carry(old: S, fresh: S, places: Mapping[int, int]) -> S:
    """Return `fresh` with everything that is not per layer, and the layers in `places`, taken over from `old`.

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
    """Return the state as plain lists, numbers, strings and tensors, fit for `torch.load(weights_only=True)`."""
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


def unpack(packed: Mapping[str, Any], fresh: S, layers: int, *, release: str | None = None) -> S:
    """Return the state that `pack` wrote, in this version or an earlier one.

    A field that the state lacks, because the policy got it later, takes its default in the dataclass; the default of
    an array is one number, which every layer gets.

    Args:
        packed: what `pack` returned.
        fresh: a state of the same policy.
        layers: how many layers the state is for.
        release: the release of adapt that wrote the state, if known, for the error's message.

    Raises:
        ValueError: a field without a default is missing, or a field is unknown, of another type or size than the
            policy's, or holds what no run can reach.
    """
    known, kind = {field.name: field for field in fields(fresh)}, type(fresh).__name__
    if unknown := sorted(map(ascii, set(packed) - set(known))):
        writer = f"adapt {release}, which wrote it," if release else "the release that wrote it"
        raise ValueError(
            f"the policy's state holds {', '.join(unknown):.200}, which {kind} of this release does not know: "
            f"load it with {writer} or a later one"
        )
    changes = {
        name: _unpacked(name, packed[name], fresh, layers) if name in packed else _default(field, fresh, layers)
        for name, field in known.items()
    }
    state = replace(fresh, **changes)
    state.check()
    return state


def _default(field: Field[Any], fresh: State, layers: int) -> Any:
    """Return the default of a field that a state lacks."""
    default = field.default if field.default_factory is MISSING else field.default_factory()
    if default is MISSING:
        raise ValueError(f"the policy's state lacks {field.name!r}, without which {type(fresh).__name__} cannot go on")
    model = getattr(fresh, field.name)
    return np.full((layers, *model.shape[1:]), default, model.dtype) if isinstance(model, np.ndarray) else default


def _unpacked(name: str, value: Any, fresh: State, layers: int) -> Any:
    """Return a field's value, if it is of the type and size that `fresh` has."""
    model = getattr(fresh, name)
    if name == "formats":
        if not isinstance(value, list) or len(value) != layers:
            raise ValueError(f"the policy's state should list a format for each of {layers} layers, got {value!r:.80}")
        return unpack_formats(value)
    if isinstance(model, np.ndarray):
        array = value.numpy() if isinstance(value, Tensor) else None
        if array is None or array.dtype != model.dtype or array.shape != (layers, *model.shape[1:]):
            raise ValueError(f"the policy's {name!r} should be {model.dtype} [{layers}], got {value!r:.80}")
        if np.isnan(array).any() and not np.isnan(model).any():
            raise ValueError(f"the policy's {name!r} should be numbers, but holds NaN")
        return array.copy()
    if isinstance(model, tuple):
        item = get_args(get_type_hints(type(fresh))[name])[0]
        if not isinstance(value, list) or not all(type(element) is item for element in value):
            raise ValueError(f"the policy's {name!r} should be a list of {item.__name__}, got {value!r:.80}")
        return tuple(value)
    if type(value) is not type(model):
        raise ValueError(f"the policy's {name!r} should be a {type(model).__name__}, got {value!r:.80}")
    return value
