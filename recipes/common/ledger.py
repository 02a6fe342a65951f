"""Files of results: a JSON-lines file with a line for every finished run, and texts that are written whole."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from adapt import files
from recipes.common.settings import Settings

Line = dict[str, Any]
Run = TypeVar("Run", bound=Settings)


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Add one line in a single write, so that concurrent runs may share the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        file.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
        os.fsync(file.fileno())


def read(path: Path) -> list[Line]:
    """Return all lines, oldest first; none if there is no file.

    Raises:
        ValueError: a line is not a JSON object.
    """
    if not path.exists():
        return []
    lines = []
    # Text after the last newline is still being written.
    for number, text in enumerate(path.read_text(encoding="utf-8").split("\n")[:-1], 1):
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            line = None
        if not isinstance(line, dict):
            raise ValueError(f"{path} is damaged in line {number}: delete that line to repeat its run")
        lines.append(line)
    return lines


def is_finished(lines: list[Line], identity: Mapping[str, Any]) -> bool:
    """Whether a line agrees with `identity` in every key of `identity`."""
    wanted = json.loads(json.dumps(identity))
    return any(all(line.get(key) == value for key, value in wanted.items()) for line in lines)


def unfinished(plan: Sequence[Run], path: Path, steps_per_epoch: Callable[[Run], int]) -> Iterator[Run]:
    """Yield the runs of a plan that have no line in `path` when their turn comes; print where in the plan it is."""
    for number, settings in enumerate(plan, 1):
        heading = f"{number} of {len(plan)}: {settings.title}, seed {settings.seed}"
        # Read anew each time: another process may have finished it meanwhile.
        if is_finished(read(path), settings.identity(steps_per_epoch(settings))):
            print(f"{heading}: already finished", flush=True)
        else:
            print(heading, flush=True)
            yield settings


def digest(identity: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits that tell identities apart in file names."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]


def write_text(text: str, path: Path) -> None:
    """Write a text file, whole or not at all."""
    with files.replacing(path) as file:
        file.write(text.encode())
