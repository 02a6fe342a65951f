"""Carry the state of a policy over to other layers, and convert it to plain data and back."""

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, replace
from typing import Any, get_args, get_type_hints

import numpy as np
import torch
from torch import Tensor

from adapt.numerics import pack_formats, unpack_formats
from adapt.switching.policy import S, State


def carry(old: S, fresh: S, places: Mapping[int, int]) -> S:
    """Return `fresh` with the layers in `places`, and everything that is not per layer, copied from `old`.

    Args:
        old: the state to keep.
        fresh: a state of the same policy for another set of layers.
        places: index in `fresh` → index in `old` of the layers in both.
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
    """Return the state as plain lists, numbers, strings and tensors, for `torch.load(weights_only=True)`."""
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

    A missing field, which the policy got later, takes its default from the dataclass; the default of an array is one
    number, used for every layer.

    Args:
        packed: what `pack` returned.
        fresh: a state of the same policy.
        layers: the number of layers in the state.
        release: the release of adapt that wrote the state, if known, for the error message.

    Raises:
        ValueError: a field without a default is missing, or a field is unknown, has another type or size than the
            policy's, or a value that no run can reach.
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
        raise ValueError(f"the policy's state lacks {field.name!r}, without which {type(fresh).__name__} cannot resume")
    model = getattr(fresh, field.name)
    return np.full((layers, *model.shape[1:]), default, model.dtype) if isinstance(model, np.ndarray) else default


def _unpacked(name: str, value: Any, fresh: State, layers: int) -> Any:
    """Return a field's value, after checking that its type and size are those in `fresh`."""
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
