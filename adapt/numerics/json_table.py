"""Write and read formats by name as JSON, for other tools and for people."""

import codecs
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from adapt.numerics.fixed_point import SHORTEST_WORD
from adapt.numerics.format import Format
from adapt.numerics.packing import arrays_of, check_channels

KIND, VERSION = "adapt.formats", 1

_ENDS = ("minimum", "maximum")
_NUMBERS = ("word_length", "integer_length", "fraction_length", "step", "signed", *_ENDS)


def to_json(formats: Mapping[str, Format]) -> str:
    """Return formats by name as JSON: plain numbers, or lists of them if a format has channels.

    Each has word_length and integer_length in bits including the sign, fraction_length, step, signed, minimum, maximum,
    and the axis of its channels. integer_length and fraction_length are null if a step is not a power of two.
    """
    table = {"format": KIND, "version": VERSION, "formats": {name: _fields(form) for name, form in formats.items()}}
    return json.dumps(table, indent=2, ensure_ascii=False) + "\n"


def from_json(text: str | bytes, where: str) -> dict[str, Format]:
    """Return the formats in a table that `to_json`, or a person, wrote.

    A format needs word_length, and fraction_length or step. By default it is signed, uses the full range of its words,
    and applies to the whole tensor.

    Args:
        text: the JSON.
        where: the file, for messages.

    Raises:
        ValueError: it is not such a table, or a format makes no sense; the message names it.
    """
    try:
        table = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON: {error!s:.200}") from error
    if not isinstance(table, dict) or table.get("format") != KIND or not isinstance(table.get("formats"), dict):
        raise ValueError(
            f'{where} is not a table of formats: it should hold {{"format": "{KIND}", "version": {VERSION}, '
            '"formats": {"conv1.weight": {"word_length": 8, "fraction_length": 6}}}'
        )
    if table.get("version") != VERSION or isinstance(table["version"], bool):
        raise ValueError(
            f"{where} has version {table.get('version')!r:.80}, but this package reads tables of version {VERSION}"
        )
    found = {}
    for name, entry in table["formats"].items():
        try:
            with np.errstate(all="ignore"):  # results that overflow are refused
                found[name] = _format(entry)
        except (ValueError, TypeError, OverflowError) as error:
            raise ValueError(f"{where}: the format of {name} makes no sense: {error!s:.300}") from error
    return found


def is_json(path: str | os.PathLike[str]) -> bool:
    """Return whether a file begins like a JSON object.

    Raises:
        OSError: it cannot be opened.
    """
    with open(path, "rb") as file:
        return file.read(64).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"{")


def read(path: str | os.PathLike[str]) -> dict[str, Format]:
    """Return the formats in a file: see `from_json`."""
    return from_json(Path(path).read_bytes(), str(Path(path)))


def _fields(form: Format) -> dict[str, Any]:
    fraction = form.fraction_length
    return {
        "word_length": form.word_length.tolist(),
        "integer_length": None if fraction is None else (form.word_length - fraction).tolist(),
        "fraction_length": None if fraction is None else fraction.tolist(),
        "step": form.step.tolist(),
        "signed": form.signed.tolist(),
        "minimum": form.minimum.tolist(),
        "maximum": form.maximum.tolist(),
        "axis": form.axis,
        **({"groups": form.groups} if form.groups > 1 else {}),
    }


def _format(entry: Any) -> Format:
    """Return the format of an entry.

    Raises:
        ValueError, TypeError, OverflowError: a field is missing, unknown or of the wrong kind, or fields contradict.
    """
    if not isinstance(entry, dict):
        raise TypeError(f"it should be numbers by name, got {entry!r:.80}")
    if unknown := sorted(set(entry) - {*_NUMBERS, "axis", "groups"}):
        raise ValueError(f"it has no {', '.join(unknown):.80}; there are {', '.join(_NUMBERS)}, axis and groups")
    given = arrays_of(entry, [name for name in _NUMBERS if entry.get(name) is not None])
    check_channels(entry)
    if "word_length" not in given or not {"step", "fraction_length"} & set(given):
        raise ValueError("it needs word_length, and fraction_length or step")
    word = given["word_length"]
    if not ((word >= 1) & (word <= 32)).all():
        raise ValueError(f"word_length must lie between 1 and 32 bits, got {word}")
    step = given["step"] if "step" in given else np.exp2(-given["fraction_length"].astype(np.float64))
    if not ((step > 0) & (step < np.inf)).all():
        raise ValueError(f"step must be a positive float32 number, got {step}")
    signed = given.get("signed", np.ones(word.shape, bool))
    # One signed bit is the word −1 or 1.
    half = np.exp2(word - signed)
    whole = np.where(signed, np.where(word < SHORTEST_WORD, -1, -half), 0), np.maximum(half - 1, 1)
    low, high = (np.rint(given[end] / step) if end in given else value for end, value in zip(_ENDS, whole, strict=True))
    form = Format(word, step, signed, low, high, entry.get("axis"), entry.get("groups", 1))
    expected = _fields(form)
    for name, array in given.items():
        if not np.array_equal(array, np.array(expected[name])):
            raise ValueError(f"{name} is {entry[name]!r:.80}, but the other numbers make it {expected[name]!r:.80}")
    return form
