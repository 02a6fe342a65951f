"""Check whether a saved state of learned formats fits the run that is to resume from it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from adapt.engine import persistence
from adapt.trace import Trace
from adapt.trace.widths import Widths

_KINDS: dict[str, type] = {
    "step": int,
    "count": int,
    "frozen": bool,
    "settled": bool,
    "gradients": list,
    "rule": bytes,
    "log": bytes,
    "trace": bytes,
    "widths": bytes,
    persistence.FORMATS: bytes,
}


def check(
    state: Any,
    *,
    kind: str,
    names: Sequence[str],
    masters: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    optimized: Mapping[str, Tensor],
) -> None:
    """Check that `LearnedRun.load_state_dict` can load this state completely.

    Args:
        state: the state to check.
        kind: name of the plan that is to continue.
        names: the formats' names.
        masters: the layers' masters, by name.
        tensors: further required tensors, by their names in the state.
        optimized: every parameter of the optimizer, by name.

    Raises:
        ValueError: the state is of another kind, version or network.
    """
    if not isinstance(state, Mapping) or state.get("kind") != kind:
        found = state.get("kind", "another kind of controller") if isinstance(state, Mapping) else "nothing readable"
        raise ValueError(f"the precision state is of {found!s:.80}, not of {kind}: attach as in the run that saved it")
    persistence.check_version(state)
    for field, expected in (("layers", list(masters)), ("names", list(names))):
        saved = state.get(field)
        if not isinstance(saved, list) or saved != expected:
            raise ValueError(
                "the precision state is of another network, or was saved with other options: its "
                f"{field} should be {len(expected)}, beginning with {', '.join(expected[:3])}, got {saved!r:.160}"
            )
    persistence.check_kinds(state, _KINDS)
    for field in ("step", "count"):
        if not 0 <= state[field] < 2**63:
            raise ValueError(f"the precision state should hold {field!r} as a number of steps ≥ 0, got {state[field]}")
    if state["frozen"] and not state["settled"] and kind == "LearnedWidths":
        raise ValueError("the precision state should hold 'settled' as True where 'frozen' is True, got False")
    for field in ("gradients", "micro_losses"):
        values = state.get(field, [])
        if not isinstance(values, list) or not all(type(value) is float for value in values):
            raise ValueError(f"the precision state should hold {field!r} as a list of numbers, got {values!r:.80}")
    micro = state.get("micro_gradients", {})
    if not isinstance(micro, Mapping):
        raise ValueError(f"the precision state should hold 'micro_gradients' by name, got {micro!r:.80}")
    persistence.check_tensors("micro_gradients", micro, {name: p for name, p in optimized.items() if name in micro})
    saved = state.get("masters")
    persistence.check_tensors("masters", saved if isinstance(saved, Mapping) else {}, masters)
    for name, model in tensors.items():
        persistence.check_tensors(name, {name: state.get(name)}, {name: model})


def histories(state: Mapping[str, Any], trace: Trace, widths: Widths) -> tuple[Trace, Widths]:
    """Return the trace and the widths of a state that `check` and `FormatTable.check_state` have accepted.

    Args:
        state: the state.
        trace, widths: those of the run that is to resume.

    Raises:
        ValueError: one is damaged, belongs to another network, or goes beyond the state's step.
    """
    try:
        old_trace = Trace.from_state_dict(persistence.from_bytes(state["trace"]))
        old_widths = Widths.from_state_dict(persistence.from_bytes(state["widths"]))
    except Exception as error:  # foreign contents raise half a dozen kinds
        raise ValueError(f"the trace or the widths of the precision state are damaged: {error!s:.200}") from error
    numel = state["formats"]["numel"].cpu().numpy()
    fits = {
        "trace": old_trace.layers == trace.layers and np.array_equal(old_trace.numel, trace.numel),
        "widths": old_widths.names == widths.names
        and np.array_equal(old_widths.channels, widths.channels)
        and np.array_equal(old_widths.numel, numel),
    }
    for (field, same), steps in zip(fits.items(), (old_trace.step, old_widths.step), strict=True):
        if not same:
            raise ValueError(f"the precision state should hold the {field} of this network, got those of another one")
        if len(steps) and steps[-1] > state["step"]:
            raise ValueError(f"the precision state is of step {state['step']}, but its {field} go to {steps[-1]}")
    return old_trace, old_widths
