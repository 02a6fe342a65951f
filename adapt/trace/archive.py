"""Arrays in an npz file: written whole or not at all, read back without trusting a byte."""

import math
import os
import sys
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from adapt.files import replacing

EXPANSION_LIMIT = 2**30
"""Bytes that a file may unpack to when it is smaller than that itself."""

LONGEST_TEXT = 1024
"""Characters of one element of a text array."""

Layout = Mapping[str, tuple[np.dtype[Any] | None, tuple[str, ...]]]
"""Type (None: text) and named extents of every array; extents of one name are equal in all arrays."""


def write(path: Path, arrays: Mapping[str, NDArray[Any]], *, version: int) -> None:
    """Write the arrays and the version of their layout. The file appears complete or not at all.

    Raises:
        OSError: the folder does not exist or cannot be written.
    """
    # A file may unpack to EXPANSION_LIMIT or to its own size; what is larger is therefore left unpacked.
    small = sum(array.nbytes for array in arrays.values()) + 1024 * len(arrays) <= EXPANSION_LIMIT
    save = np.savez_compressed if small else np.savez
    members: dict[str, Any] = {"version": np.array(version, dtype="<i8"), **arrays}
    with replacing(path) as file:
        save(file, allow_pickle=False, **members)


def read(path: Path, layout: Layout, *, version: int) -> dict[str, NDArray[Any]]:
    """Read the arrays of a file that `write` made, after everything that it declares agrees with the layout.

    Nothing in the file is executed, and memory is taken for what is really there.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is not such a file, complete and of this version.
    """
    with path.open("rb") as file:
        # Broken archives raise a dozen kinds of exceptions, from struct.error to RecursionError.
        try:
            with zipfile.ZipFile(file) as archive:
                _check_sizes(archive, file.seek(0, os.SEEK_END))
                found = int(_read_member(archive, "version", np.dtype("<i8"), (), {}))
                check_version(found, version)
                names = [member.filename.removesuffix(".npy") for member in archive.infolist()]
                check_names(names, {"version", *layout})
                extents: dict[str, int] = {}
                return {name: _read_member(archive, name, *expected, extents) for name, expected in layout.items()}
        except Exception as error:
            raise ValueError(str(error)[:300] or type(error).__name__) from error


def from_state(state: Mapping[str, Any], layout: Layout, *, version: int) -> dict[str, NDArray[Any]]:
    """The number arrays of a state dict that holds the layout's members, its arrays as tensors, and its version.

    Raises:
        TypeError: an array is no tensor.
        ValueError: a member is missing or too much, or the version is another.
    """
    check_names(state, {"version", *layout})
    check_version(state["version"], version)
    arrays = {}
    for name in (name for name, (dtype, _) in layout.items() if dtype is not None):
        if not isinstance(state[name], torch.Tensor):
            raise TypeError(f"state[{name!r}] must be a tensor, got {type(state[name]).__name__}")
        arrays[name] = state[name].detach().cpu().numpy()
    return arrays


def check_names(names: Iterable[object], expected: set[str]) -> None:
    """Refuse any other set of names, and a name that comes twice.

    Raises:
        ValueError: the message tells what is missing or too much.
    """
    found = list(names)
    wrong = sorted(ascii(name) for name in expected ^ set(found))
    if wrong:
        everything = ", ".join(sorted(expected))
        raise ValueError(f"it must hold exactly {everything}; missing or too much: {', '.join(wrong)}"[:500])
    if len(found) > len(expected):
        raise ValueError("it holds something twice")


def check_version(found: object, version: int) -> None:
    """Refuse every other version.

    Raises:
        ValueError: the message tells both versions.
    """
    if isinstance(found, bool) or not isinstance(found, int) or found != version:
        raise ValueError(f"its version is {found!r}, this release reads version {version}")


def _check_sizes(archive: zipfile.ZipFile, size: int) -> None:
    members = archive.infolist()
    expanded = sum(member.file_size for member in members)
    if expanded > max(EXPANSION_LIMIT, size):
        raise ValueError(f"it would unpack from {size} to {expanded} bytes")
    if any(member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for member in members):
        raise ValueError("it is packed by an unexpected method")


def _read_member(
    archive: zipfile.ZipFile,
    name: str,
    dtype: np.dtype[Any] | None,
    shape: tuple[str, ...],
    extents: dict[str, int],
) -> NDArray[Any]:
    """One array of the archive; extents that are seen for the first time are noted, the others must agree."""
    member = archive.getinfo(f"{name}.npy")
    with archive.open(member) as stream:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError(f"{name} is stored in an unknown way")
        found_shape, transposed, found = np.lib.format.read_array_header_1_0(stream)
        text = found.kind == "U" and found.str.startswith("<") and 0 < found.itemsize <= 4 * LONGEST_TEXT
        if (found != dtype) if dtype is not None else not text:
            raise ValueError(f"{name} holds {found}, expected {dtype or 'text'}")
        if len(found_shape) != len(shape) or any(
            extents.get(extent, found_extent) != found_extent
            for extent, found_extent in zip(shape, found_shape, strict=True)
        ):
            expected = ", ".join(str(extents.get(extent, extent)) for extent in shape)
            raise ValueError(f"{name} has the shape {found_shape}, expected [{expected}]")
        count = math.prod(found_shape) * found.itemsize
        if transposed or min(found_shape, default=0) < 0 or stream.tell() + count != member.file_size:
            raise ValueError(f"{name} does not have the size that its header declares")
        content = stream.read(count)
        # Reading on to the end is what makes zipfile compare the checksum.
        if len(content) != count or stream.read(1):
            raise ValueError(f"{name} ends early")
    # NumPy breaks off with SystemError where it makes strings of such numbers.
    if dtype is None and np.ndarray(count // 4, "<u4", content).max(initial=0) > sys.maxunicode:
        raise ValueError(f"{name} holds numbers that are no characters")
    extents.update(zip(shape, found_shape, strict=True))
    return np.ndarray(found_shape, dtype=found, buffer=content)
