"""Whether a saved state of learned formats fits the run that is to go on from it."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from adapt.run import checkpoint

VERSION = 1

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
}


def check(
    state: Any,
    *,
    kind: str,
    layers: Sequence[str],
    names: Sequence[str],
    masters: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
) -> None:
    """Refuse a state that `LearnedRun.load_state_dict` could not take in whole.

    Args:
        state: the state to look at.
        kind: name of the plan that is to go on.
        layers: the layers' names.
        names: the formats' names.
        masters: the masters, by the layers' names.
        tensors: what else must be there, by the state's names.

    Raises:
        ValueError: the state is of another kind, version or network.
    """
    if not isinstance(state, Mapping) or state.get("kind") != kind:
        found = state.get("kind", "another kind of controller") if isinstance(state, Mapping) else "nothing readable"
        raise ValueError(f"the precision state is of {found!s:.80}, not of {kind}: attach what saved it")
    if state.get("version") != VERSION:
        found = f"{state.get('version')!r:.80}"
        raise ValueError(f"the precision state has version {found}, but this package reads {VERSION}")
    for field, expected in (("layers", layers), ("names", names)):
        saved = state.get(field)
        if not isinstance(saved, list) or saved != list(expected):
            raise ValueError(
                "the precision state is of another network, or was saved with other options: its "
                f"{field} should be {len(expected)}, beginning with {', '.join(expected[:3])}, got {saved!r:.160}"
            )
    for field, type_ in _KINDS.items():
        value = state.get(field)
        if type(value) is not type_:
            raise ValueError(f"the precision state should hold {field!r} as {type_.__name__}, got {value!r:.80}")
    saved = state.get("masters")
    checkpoint.check_tensors("masters", saved if isinstance(saved, Mapping) else {}, masters)
    for name, model in tensors.items():
        checkpoint.check_tensors(name, {name: state.get(name)}, {name: model})
