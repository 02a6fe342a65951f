"""Write files completely or not at all, and read checkpoints without trusting them."""

import os
import pickle
import re
import secrets
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a file that replaces `path` when the context ends without an error. Until then `path` stays as it is.

    Raises:
        OSError: the folder does not exist or cannot be written.
    """
    if not path.parent.exists():
        raise FileNotFoundError(f"{path.parent} does not exist: create the folder of {path.name} first")
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with unfinished.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def save(state: Any, path: str | os.PathLike[str]) -> None:
    """Write a checkpoint like `torch.save`, but keep the previous one if writing is interrupted.

    Objects that only a pickle could restore are refused before the previous file is replaced, so `load` can always read
    what `save` wrote. A process that is killed while writing leaves a hidden file `.NAME.….tmp` behind.

    Args:
        state: plain containers, numbers, strings and tensors, such as `state_dict()` of a module or an optimizer.
        path: the file. Its folder must exist.

    Raises:
        TypeError: `state` holds an object that cannot be read back without executing code.
        OSError: the folder does not exist or cannot be written.
    """
    with replacing(Path(path)) as file:
        try:
            torch.save(state, file)
        except (AttributeError, TypeError, pickle.PicklingError) as error:
            raise _unreadable(error) from error
        file.flush()
        try:
            torch.load(file.name, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # torch raises half a dozen kinds
            raise _unreadable(error) from error


def _unreadable(error: Exception) -> TypeError:
    """Return the error with which `save` refuses a state."""
    return TypeError(
        f"state could not be read back without executing code, so nothing was saved ({_reason(error)}): "
        "save state_dict()s, tensors, numbers, strings and containers of them"
    )


def load(path: str | os.PathLike[str], *, map_location: Any = "cpu") -> Any:
    """Read a checkpoint that `save` or `torch.save` wrote. Nothing in the file is executed.

    The checksums of all parts are compared first, so that a damaged file is refused instead of partly read. Compressed
    parts, which could unpack to any size, are refused too.

    Args:
        path: the file.
        map_location: as in `torch.load`.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is truncated, damaged, not a checkpoint, or holds objects that only a pickle could restore.
    """
    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                    raise ValueError("it is packed, which torch.save never does")
                if (damaged := archive.testzip()) is not None:
                    raise ValueError(f"the checksum of {damaged:.80} does not match")
            file.seek(0)
            return torch.load(file, map_location=map_location, weights_only=True)
        except Exception as error:  # broken files raise a dozen kinds, from struct.error to UnpicklingError
            raise ValueError(f"{path} is not a readable checkpoint: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Return the error as one line, without torch's advice to trust the file."""
    _, _, message = str(error).rpartition("WeightsUnpickler error: ")
    # torch has two wordings, one for unknown objects, one for modules that it always blocks.
    if (found := re.search(r"(?:Unsupported global:|unsupported) GLOBAL (\S+)", message)) is not None:
        return f"it holds a {found[1]:.200}, which only a pickle could restore"
    return (message.strip().splitlines() or [type(error).__name__])[0][:300]
