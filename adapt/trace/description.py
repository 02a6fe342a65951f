"""The settings of a run as plain data, for the trace's file, checkpoints, loggers and reports."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from numbers import Integral, Real
from typing import Any

import adapt
from adapt.trace.archive import LONGEST_TEXT


def plain(value: Any) -> Any:
    """Convert a value to None, booleans, numbers, strings, and lists and dicts of these.

    A dataclass becomes a dict of its fields, a function its full name, and anything else its `repr`.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [plain(part) for part in value]
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return repr(value)


def made_by(**parts: Any) -> dict[str, Any]:
    """Return the settings of a run as plain data, together with the release of adapt."""
    return {"adapt": adapt.__version__, **plain(parts)}


def flat(run: Mapping[str, Any], separator: str) -> dict[str, Any]:
    """Return nested settings as one mapping, whose names are joined by the separator."""
    found: dict[str, Any] = {}
    for name, value in run.items():
        inner = flat(value, separator) if isinstance(value, Mapping) else None
        found |= {name: value} if inner is None else {f"{name}{separator}{part}": v for part, v in inner.items()}
    return found


def packed(run: Mapping[str, Any]) -> list[str]:
    """Return a description as JSON, split into strings that fit into an archive."""
    text = json.dumps(plain(run))
    return [text[start : start + LONGEST_TEXT] for start in range(0, len(text), LONGEST_TEXT)]


def unpacked(pieces: Sequence[str]) -> dict[str, Any]:
    """Return the description that `packed` split into pieces.

    Raises:
        ValueError: the pieces are not a description.
    """
    try:
        run = json.loads("".join(pieces))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the settings of the run are not readable: {error}") from error
    if not isinstance(run, dict):
        raise ValueError(f"the settings of the run should be named values, got {run!r:.80}")
    return run
