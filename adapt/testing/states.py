"""Check the states that a policy returns, and compare them."""

import io
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adapt.numerics import BlockFloat, FixedPoint
from adapt.switching.policy import State
from adapt.switching.saved_state import pack, unpack


def require(condition: bool, message: str) -> None:
    """Raise an AssertionError with this message unless the condition holds."""
    if not condition:
        raise AssertionError(message)


def check_state(where: str, state: Any, layers: int) -> None:
    """Check that the method `where` has returned a state of this many layers that survives a checkpoint.

    Raises:
        AssertionError: it has not; the message says in one sentence what to do.
    """
    hint = ": is a `return` missing?" if state is None else ": return adapt.switching.policy.State or a subclass"
    require(isinstance(state, State), f"{where} must return a State, got {state!r:.80}{hint}")
    formats = state.formats
    require(isinstance(formats, tuple), f"{where} must return formats as a tuple, got {formats!r:.80}")
    for form in formats:
        hint = f": write adapt.Precision{form!r}" if isinstance(form, tuple) and len(form) == 2 else ""
        require(
            form is None or isinstance(form, FixedPoint | BlockFloat),
            f"{where} returns {form!r:.80} as a format, but a format is an adapt.Precision, a BlockFloat or None "
            f"for float32{hint}",
        )
    require(
        len(formats) == layers,
        f"{where} returns {len(formats)} formats for {layers} layers: return one for each, in the layers' order",
    )
    known = {field.name for field in fields(state)}
    require(
        not (extra := sorted(set(vars(state)) - known)) and is_dataclass(type(state)),
        f"the state of {where} has {', '.join(extra)}, which is not a field and would not be saved: declare it in "
        "a class derived from State with @dataclass(frozen=True)",
    )
    for name in known - {"formats"}:
        value = getattr(state, name)
        if isinstance(value, np.ndarray):
            require(
                value.shape[:1] == (layers,),
                f"{name} in the state of {where} has shape {value.shape}: an array must have one item for each of "
                f"{layers} layers, and anything that belongs to no layer must be a number, a string or a tuple",
            )
    counts: Any = state.gradients
    require(
        isinstance(counts, np.ndarray) and counts.dtype == np.int64 and counts.shape == (layers,),
        f"gradients in the state of {where} must be an int64 array of {layers} counts, got {counts!r:.80}",
    )
    _check_saved(where, state, layers)


def _check_saved(where: str, state: State, layers: int) -> None:
    for field in fields(state):
        try:
            packed, file = pack(state), io.BytesIO()
            torch.save(packed[field.name], file)
            file.seek(0)
            read = torch.load(file, weights_only=True)
            same = equal(vars(unpack({**packed, field.name: read}, state, layers)), vars(state))
        except Exception as error:
            same, reason = False, f" ({' '.join(str(error).split()):.120})"
        else:
            reason = ""
        require(
            same,
            f"{field.name} in the state of {where} does not come back from a checkpoint{reason}: keep NumPy arrays "
            "[layers], numbers, strings, or tuples of numbers or strings",
        )


def equal(a: Any, b: Any) -> bool:
    """Return whether two values are deeply equal; NaN equals NaN, and functions equal everything."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    if isinstance(a, State):
        return type(a) is type(b) and equal(vars(a), vars(b))
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return callable(a) or bool(a == b) or (a != a and b != b)
