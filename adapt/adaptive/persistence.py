"""Read the saved state of a run with a policy, and check that it can be loaded."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from adapt.adaptive.masters import FixedPointMasters
from adapt.engine.persistence import FORMATS, check_kinds, check_tensors, check_version, from_bytes, upgraded
from adapt.switching.policy import Policy, State, columns_of, for_layers
from adapt.switching.saved_state import carry, unpack
from adapt.trace import Trace
from adapt.trace.archive import release_of

_KINDS = {
    "step": int,
    "seed": int,
    "stochastic": bool,
    "policy": str,
    "layers": list,
    "state": Mapping,
    "masters": Mapping,
    "sums": Mapping,
    "windows": Mapping,
    "skipped": Mapping,
    "followers": Mapping,
    "follower_formats": Mapping,
    "micro_losses": list,
    "gradients": Mapping,
    "activations": Mapping,
    "trace": bytes,
    FORMATS: bytes,
}


class Saved(NamedTuple):
    """A saved state that can be loaded.

    Attributes:
        fields: its fields, in the present version.
        places: the index here of each layer that it holds → the layer's index there.
        policy_state: the policy's state for the layers here.
        trace: the history of the layers here; empty if other layers were saved.
    """

    fields: Mapping[str, Any]
    places: Mapping[int, int]
    policy_state: State
    trace: Trace


def read(state: Any, policy: Policy[Any], fresh: State, masters: FixedPointMasters, *, strict: bool) -> Saved:
    """Return a saved state for a run with this policy and these layers.

    Args:
        state: what `AdaptiveRun.state_dict` returned, in this version or an earlier one.
        policy: the policy that is to continue.
        fresh: its initial state.
        masters: the layers' masters.
        strict: refuse missing and surplus layers.

    Raises:
        ValueError: the state is damaged, or of another kind, version, policy or network.
    """
    fields, names = upgraded(state), masters.names
    weights = dict(zip(names, masters.weights, strict=True))
    _check(fields, policy=type(policy).__name__, weights=weights, sums=policy.sums_gradients, strict=strict)
    old_names, old_trace = list(fields["layers"]), from_bytes(fields["trace"])
    old = unpack(fields["state"], fresh, len(old_names), release=release_of(old_trace))
    places = {i: old_names.index(name) for i, name in enumerate(names) if name in old_names}
    if len(places) < len(names):
        # A state with all layers replaces everything, so the weights, which may not even be finite, are not looked at.
        fresh = for_layers(policy, names).start(masters.shown_to(policy))
    if policy.keeps_gradients:
        _check_windows(fields["windows"], dict(zip(old_names, old.gradients.tolist(), strict=True)))
    # A layer that joined late comes last in the run that was saved, but maybe not here.
    same = sorted(old_names) == sorted(names)
    trace = Trace.from_state_dict(old_trace) if same else Trace(names, masters.numel)
    trace.add_columns(columns_of(policy))
    if trace.layers != names:
        trace = trace.reordered(names)
    if len(trace) and trace.step[-1] > fields["step"]:
        raise ValueError(f"the precision state is of step {fields['step']}, but its trace goes to {trace.step[-1]}")
    policy_state = carry(old, fresh, places)
    masters.check_formats(policy_state.formats)
    return Saved(fields, places, policy_state, trace)


def _check(state: Any, *, policy: str, weights: Mapping[str, Tensor], sums: bool, strict: bool) -> None:
    """Check that the state of a policy's run can be loaded completely.

    Args:
        state: the state to check.
        policy: name of the policy that is to continue.
        weights: the layers' master weights, by name.
        sums: whether the policy keeps running sums.
        strict: refuse missing and surplus layers too.

    Raises:
        ValueError: the state is of another kind, version, policy or network.
    """
    if not isinstance(state, Mapping) or "version" not in state:
        raise ValueError("the precision state is not the state of a controller: it has no version")
    check_version(state)
    if "kind" in state:
        raise ValueError("the precision state is of another kind of controller, one of learned widths")
    check_kinds(state, _KINDS)
    if not 0 <= state["step"] < 2**62:
        raise ValueError(f"the precision state should count steps from 0, got {state['step']}")
    if state["policy"] != policy:
        raise ValueError(f"the precision state was written by the policy {state['policy']:.80}, not by {policy}")
    layers = state["layers"]
    if not all(isinstance(name, str) for name in layers) or len(set(layers)) < len(layers):
        raise ValueError(f"the precision state should list each layer's name once, got {layers!r:.80}")
    missing, surplus = sorted(set(weights) - set(layers)), sorted(set(layers) - set(weights))
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
    both = {name: weight for name, weight in weights.items() if name in layers}
    for field in ("masters", "sums") if sums else ("masters",):
        check_tensors(field, state[field], both)
    for name, weight in both.items():
        window = state["windows"].get(name, [])
        if not isinstance(window, list):
            raise ValueError(f"the precision state should list the window of {name}, got {window!r:.80}")
        for gradient in window:
            check_tensors("windows", {name: gradient}, {name: weight})
    if not all(type(count) is int and 0 <= count < 2**63 for count in state["skipped"].values()):
        raise ValueError(f"the precision state should count skipped gradients, got {state['skipped']!r:.80}")
    if not all(type(loss) is float for loss in state["micro_losses"]):
        raise ValueError(f"the precision state should list losses as numbers, got {state['micro_losses']!r:.80}")


def _check_windows(windows: Mapping[str, Sequence[Tensor]], gradients: Mapping[str, int]) -> None:
    """Check that each window holds as many gradients as its layer's running sum.

    Raises:
        ValueError: one does not. This happens with `torch.distributed.checkpoint`, which drops lists of other lengths.
    """
    for name, count in gradients.items():
        if len(windows.get(name, ())) != count:
            raise ValueError(
                f"the precision state should hold the {count} gradients in the window of {name}, "
                f"got {len(windows.get(name, ()))}"
            )
