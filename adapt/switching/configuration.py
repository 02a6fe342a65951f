"""Convert policies to plain data and back, for configuration files and for the record of a run."""

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

import adapt
from adapt.numerics import BlockFloat, ChannelPrecision, LayerFormat, Precision
from adapt.switching.adapt import AdaPT
from adapt.switching.cyclic import CyclicPrecision
from adapt.switching.fixed import Fixed
from adapt.switching.muppet import MuPPET
from adapt.switching.policy import Policy
from adapt.trace.description import plain

POLICIES: dict[str, type[Any]] = {policy.__name__: policy for policy in (AdaPT, CyclicPrecision, Fixed, MuPPET)}
"""The policies of this package by name."""

_KINDS = Precision, ChannelPrecision, BlockFloat


def to_dict(policy: Policy[Any]) -> dict[str, Any]:
    """Return a policy as numbers, strings, lists and dicts, suitable for JSON and YAML.

    The dict has the name of the policy's class as "name", and every hyperparameter by its own name. Your own policies
    are described too, but `from_dict` can only recreate those of this package.

    Raises:
        ValueError: a `Fixed` policy has a format in which no layer can train.
    """
    if isinstance(policy, Fixed) and isinstance(policy.precision, Mapping):
        policy = policy.for_layers(list(policy.precision))
    described: dict[str, Any] = plain(policy) if is_dataclass(policy) else {}
    return {"name": type(policy).__name__, **described}


def from_dict(described: Mapping[str, Any]) -> Any:
    """Return the policy that `to_dict` described. Missing hyperparameters get their defaults.

    Raises:
        TypeError: the description is not a mapping, or a hyperparameter has the wrong type.
        ValueError: the policy or a hyperparameter is unknown, missing without a default, or has an invalid value.
    """
    if not isinstance(described, Mapping):
        raise TypeError(f"a policy is described by named values, such as {{'name': 'AdaPT'}}, got {described!r:.80}")
    name = described.get("name")
    if not isinstance(name, str) or name not in POLICIES:
        raise ValueError(f"there is no policy {name!r:.80} in adapt {adapt.__version__}: it has {', '.join(POLICIES)}")
    kind = POLICIES[name]
    known = {field.name: field for field in fields(kind)}
    given = {key: value for key, value in described.items() if key != "name"}
    if unknown := sorted(map(str, set(given) - set(known))):
        raise ValueError(f"{name} has no hyperparameter {', '.join(unknown):.80}: it has {', '.join(known)}")
    if missing := [key for key, field in known.items() if field.default is MISSING and key not in given]:
        raise ValueError(f"{name} needs a value for {', '.join(missing)}")
    return kind(**{key: _formats(key, value) if isinstance(value, Mapping) else value for key, value in given.items()})


def _formats(name: str, value: Mapping[str, Any]) -> LayerFormat | dict[str, LayerFormat]:
    """Return the format, or table of formats, described by plain data."""
    if all(part is None or isinstance(part, Mapping) for part in value.values()):
        return {
            layer: None if form is None else _format(f"{name} of {layer}", form, *_KINDS)
            for layer, form in value.items()
        }
    only: LayerFormat = _format(name, value, Precision)
    return only


def _format(name: str, value: Mapping[str, Any], *kinds: type[Any]) -> Any:
    for kind in kinds:
        if set(value) == {field.name for field in fields(kind)}:
            return kind(**value)
    raise ValueError(f"{name} needs word_length and fraction_length, and nothing else, got {dict(value)!r:.80}")
