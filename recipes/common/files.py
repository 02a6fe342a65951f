"""Files that appear whole or not at all."""

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch


def write(path: Path, writer: Callable[[BinaryIO], object]) -> None:
    """Let `writer` fill a file that takes the place of `path` when it is complete and on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            writer(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable JSON."""
    write(path, lambda file: file.write((json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()))


def write_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write a mapping of tensors, numbers, strings and containers of them."""
    write(path, lambda file: torch.save(dict(state), file))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What `write_checkpoint` wrote; nothing in the file is executed.

    Raises:
        ValueError: the file is damaged or no checkpoint.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen kinds, from EOFError to UnpicklingError
        raise ValueError(f"{path} is not a readable checkpoint ({error}): delete it to start again") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__} instead of a checkpoint: delete it to start again")
    return state
