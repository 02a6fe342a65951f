"""Files of results: a JSON-lines file with a line for every finished run, and texts that are written whole."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from adapt import files
from recipes.common.remaining import heading, time_left
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


def newest(path: Path) -> list[Line]:
    """Return the lines of a file, of those with the same settings the newest one.

    Raises:
        ValueError: a line is not a JSON object.
    """
    return list({digest(line["settings"]): line for line in read(path)}.values())


def matching(lines: Sequence[Line], identity: Mapping[str, Any]) -> list[Line]:
    """Return the lines that agree with `identity` in every key of `identity`."""
    wanted = json.loads(json.dumps(identity))
    return [line for line in lines if all(line.get(key) == value for key, value in wanted.items())]


def is_finished(lines: Sequence[Line], identity: Mapping[str, Any]) -> bool:
    """Whether a line agrees with `identity`."""
    return bool(matching(lines, identity))


def unfinished(
    plan: Sequence[Run], path: Path, steps_per_epoch: Callable[[Run], int], work: Sequence[float] | None = None
) -> Iterator[Run]:
    """Yield the runs of a plan that have no line in `path` when their turn comes; print where in the plan it is.

    Args:
        plan: the runs.
        path: the file to which the caller appends the line of a run before it asks for the next one.
        steps_per_epoch: of a run.
        work: how long each run takes, in whatever unit. If given, the time left is told, at the pace of the runs that
            were finished since.
    """
    done: list[tuple[float, float]] = []
    for number, settings in enumerate(plan, 1):
        title = f"{settings.title}, seed {settings.seed}"
        identity = settings.identity(steps_per_epoch(settings))
        # Read anew each time: another process may have finished it meanwhile.
        if is_finished(read(path), identity):
            print(f"{heading(number, len(plan), title)}: already finished", flush=True)
            continue
        left = None if work is None else time_left(done, work[number - 1 :])
        print(heading(number, len(plan), title, left), flush=True)
        yield settings
        if work is not None:
            done += [(work[number - 1], line["seconds"]) for line in matching(read(path), identity)]


def digest(identity: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits that tell identities apart in file names."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]


def write_text(text: str, path: Path) -> None:
    """Write a text file, whole or not at all."""
    with files.replacing(path) as file:
        file.write(text.encode())
