"""What of a controller rides in the optimizer's state, and whether a loaded one fits."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

KEY = "adapt"
"""Where the controller's state lies in `optimizer.state_dict()`."""

VERSION = 1

_FIELDS = {
    "version": int,
    "step": int,
    "seed": int,
    "stochastic": bool,
    "policy": str,
    "layers": list,
    "state": dict,
    "masters": dict,
    "sums": dict,
    "windows": dict,
    "skipped": dict,
    "followers": dict,
    "follower_formats": dict,
    "micro_losses": list,
    "trace": dict,
}


def copied(names: Sequence[str], tensors: Sequence[Tensor | None]) -> dict[str, Tensor]:
    """Copies of the tensors that there are, by name."""
    return {name: t.detach().clone() for name, t in zip(names, tensors, strict=True) if t is not None}


def check(state: Any, *, policy: str, weights: Mapping[str, Tensor], sums: bool, strict: bool) -> None:
    """Refuse a state that `Controller.load_state_dict` could not take in whole.

    Args:
        state: the state to look at.
        policy: name of the policy that is to go on.
        weights: the layers' master weights, by name.
        sums: whether the policy keeps running sums.
        strict: refuse missing and surplus layers too.

    Raises:
        ValueError: the state is of another kind, version, policy or network.
    """
    if not isinstance(state, Mapping) or "version" not in state:
        raise ValueError("the precision state is no state of a controller: it has no version")
    if state["version"] != VERSION:
        raise ValueError(f"the precision state has version {state['version']!r}, but this package reads {VERSION}")
    for name, kind in _FIELDS.items():
        if not isinstance(state.get(name), kind):
            raise ValueError(
                f"the precision state should hold {name!r} as {kind.__name__}, got {state.get(name)!r:.80}"
            )
    if state["policy"] != policy:
        raise ValueError(f"the precision state was written by the policy {state['policy']}, not by {policy}")
    saved = set(state["layers"])
    missing, surplus = sorted(set(weights) - saved), sorted(saved - set(weights))
    if strict and (missing or surplus):
        raise ValueError(
            "the precision state is of another network: "
            + "; ".join(
                f"{len(names)} layers are {word} ({', '.join(names[:4])}{', …' if len(names) > 4 else ''})"
                for word, names in (("missing", missing), ("unknown", surplus))
                if names
            )
            + ". Load it with strict=False to match layers by name"
        )
    both = {name: weight for name, weight in weights.items() if name in saved}
    for field in ("masters", "sums") if sums else ("masters",):
        check_tensors(field, state[field], both)


def check_tensors(field: str, tensors: Mapping[str, Any], like: Mapping[str, Tensor]) -> None:
    """Refuse tensors that do not have the names, shapes and types of `like`.

    Raises:
        ValueError: one is missing or different.
    """
    for name, model in like.items():
        tensor = tensors.get(name)
        if not isinstance(tensor, Tensor) or tensor.shape != model.shape or tensor.dtype != model.dtype:
            found = f"{tensor.dtype} {list(tensor.shape)}" if isinstance(tensor, Tensor) else f"{tensor!r:.80}"
            raise ValueError(
                f"the precision state should hold {field!r} of {name} as {model.dtype} {list(model.shape)}, got {found}"
            )
