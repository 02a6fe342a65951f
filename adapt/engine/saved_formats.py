"""Read the number formats of a run, live or from what it saved."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from adapt import files
from adapt.engine import persistence
from adapt.engine.engine import Engine
from adapt.engine.registry import attached
from adapt.numerics import Format, json_table

WEIGHTS_ONLY_KEY = "adapt_formats"
"""Key of the formats, beside the weights, in a checkpoint without optimizer states."""

Source = Engine | Optimizer | Mapping[str, Any] | str | os.PathLike[str]


def formats(source: Source) -> dict[str, Format]:
    """Return the number format of everything that is quantised, as evaluation uses it.

    Keys are parameter names for weights, biases and norm parameters, and the module's path plus ".input" or ".output"
    for activations. Float32 tensors are left out. The formats of the best checkpoint, with which its accuracy was
    measured, can differ from those at the end of the run.

    Args:
        source: a controller or learner, an optimizer that has one, an optimizer's `state_dict()`, or a checkpoint that
            holds such states at any depth; or the path of a checkpoint file (ours or Lightning's, also with
            `save_weights_only=True`) or of a JSON table of formats, as `adapt export --to json` writes it.

    Raises:
        OSError: the file cannot be opened.
        TypeError: the source is something else.
        ValueError: the file is neither a checkpoint nor a table, or the source holds no formats, contradictory ones,
            or a state of a version that did not save them.
    """
    if isinstance(source, Optimizer):
        engine = attached(source)
        if engine is None:
            raise ValueError("source is an optimizer without a controller: attach one, or pass a checkpoint")
        return engine.formats
    if isinstance(source, Engine):
        return source.formats
    where = "source"
    if isinstance(source, str | os.PathLike):
        if json_table.is_json(source):
            return json_table.read(source)
        where = str(Path(source))
        source = files.load(source)
    if not isinstance(source, Mapping):
        raise TypeError(
            f"source must be a controller, an optimizer, its state_dict(), or a checkpoint, got {type(source).__name__}"
        )
    found: dict[str, Format] = {}
    for packed in _packed(source, where):
        for name, form in persistence.unpack_formats(packed).items():
            if found.setdefault(name, form) != form:
                raise ValueError(f"{where} holds two formats of {name}: pass the state of one optimizer")
    if not found:
        raise ValueError(f"{where} holds no formats: it was saved without a controller")
    return found


def _packed(tree: Any, where: str) -> Iterator[Any]:
    """Yield the packed formats of every state in a tree of mappings and lists, which may be deep or cyclic."""
    waiting, seen = [tree], set()
    while waiting:
        branch = waiting.pop()
        if not isinstance(branch, Mapping | list | tuple) or id(branch) in seen:
            continue
        seen.add(id(branch))
        if not isinstance(branch, Mapping):
            waiting += branch
        elif WEIGHTS_ONLY_KEY in branch:
            yield branch[WEIGHTS_ONLY_KEY]
        elif persistence.is_state(branch):
            yield _of_state(branch, where)
        elif persistence.is_state(branch.get(persistence.KEY)):
            waiting.append(branch[persistence.KEY])
        else:
            waiting += branch.values()


def _of_state(state: Any, where: str) -> Any:
    content = state.get(persistence.FORMATS)
    if not isinstance(content, bytes) or not content:
        raise ValueError(
            f"{where} was saved by a version of adapt that did not write the formats into it: resume the run and save "
            "it again"
        )
    return persistence.from_bytes(content)
