"""Policies as plain data and back: for configuration files, and for a run's record of what decided on its formats."""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

import adapt
from adapt.numerics import Precision
from adapt.switching.adapt import AdaPT
from adapt.switching.cyclic import CyclicPrecision
from adapt.switching.fixed import Fixed
from adapt.switching.muppet import MuPPET
from adapt.switching.policy import Policy
from adapt.trace.description import plain

POLICIES: dict[str, type[Any]] = {policy.__name__: policy for policy in (AdaPT, CyclicPrecision, Fixed, MuPPET)}
"""The policies of this package by name."""


def to_dict(policy: Policy[Any]) -> dict[str, Any]:
    """Return a policy as numbers, texts, lists and dicts, fit for JSON and YAML.

    It holds the name of the policy's class as "policy", and every hyperparameter by its name. A policy of your own is
    described too, but only those of this package can be made again by `from_dict`.
    """
    return {"policy": type(policy).__name__, **plain(policy)} if _has_fields(policy) else {"policy": repr(policy)}


def from_dict(described: Mapping[str, Any]) -> Any:
    """Return the policy that `to_dict` described. Hyperparameters that are left out get their defaults.

    Raises:
        TypeError: it is no mapping, or a hyperparameter has a wrong type.
        ValueError: the policy or a hyperparameter is unknown or missing, or has a wrong value.
    """
    if not isinstance(described, Mapping):
        raise TypeError(f"a policy is described by named values, such as {{'policy': 'AdaPT'}}, got {described!r:.80}")
    name = described.get("policy")
    if not isinstance(name, str) or name not in POLICIES:
        raise ValueError(f"there is no policy {name!r:.80} in adapt {adapt.__version__}: it has {', '.join(POLICIES)}")
    kind = POLICIES[name]
    known = {field.name: field for field in fields(kind)}
    given = {key: value for key, value in described.items() if key != "policy"}
    if unknown := sorted(map(str, set(given) - set(known))):
        raise ValueError(f"{name} has no hyperparameter {', '.join(unknown):.80}: it has {', '.join(known)}")
    if missing := [key for key, field in known.items() if field.default is MISSING and key not in given]:
        raise ValueError(f"{name} needs a value for {', '.join(missing)}")
    return kind(
        **{key: _precision(key, value) if isinstance(value, Mapping) else value for key, value in given.items()}
    )


def _has_fields(policy: object) -> bool:
    return hasattr(type(policy), "__dataclass_fields__")


def _precision(name: str, value: Mapping[str, Any]) -> Precision:
    lengths = ("word_length", "fraction_length")
    if sorted(value) != sorted(lengths):
        raise ValueError(f"{name} needs {' and '.join(lengths)}, and nothing else, got {dict(value)!r:.80}")
    return Precision(**value)
