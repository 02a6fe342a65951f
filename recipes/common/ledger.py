"""A JSON-lines file of finished runs: a line per run, appended whole, found again by what decided how the run went."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

Line = dict[str, Any]
Run = TypeVar("Run")


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Add one line in a single write, so that runs side by side may share the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        file.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
        os.fsync(file.fileno())


def read(path: Path) -> list[Line]:
    """All lines, oldest first; none where there is no file.

    Raises:
        ValueError: a line is no JSON object.
    """
    if not path.exists():
        return []
    lines = []
    # What follows the last line's end is still being written.
    for number, text in enumerate(path.read_text(encoding="utf-8").split("\n")[:-1], 1):
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            line = None
        if not isinstance(line, dict):
            raise ValueError(f"{path} is damaged in line {number}: delete that line, and its run is made again")
        lines.append(line)
    return lines


def is_finished(lines: list[Line], identity: Mapping[str, Any]) -> bool:
    """Whether a line agrees with `identity` in every key that it has."""
    wanted = json.loads(json.dumps(identity))
    return any(all(line.get(key) == value for key, value in wanted.items()) for line in lines)


def unfinished(
    plan: Sequence[Run], path: Path, identity: Callable[[Run], Mapping[str, Any]], title: Callable[[Run], str]
) -> Iterator[Run]:
    """The runs of a plan that have no line in `path` when their turn comes; prints where in the plan it is."""
    for number, run in enumerate(plan, 1):
        heading = f"{number} of {len(plan)}: {title(run)}"
        # Read anew each time: another process may have finished it meanwhile.
        if is_finished(read(path), identity(run)):
            print(f"{heading}: finished before", flush=True)
        else:
            print(heading, flush=True)
            yield run


def digest(identity: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits that tell one identity from another in names of files."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
