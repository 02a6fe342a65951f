"""Arrays and strings in an npz file or a state dict: written completely or not at all, read without trusting them."""

import math
import os
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import adapt
from adapt.files import replacing

EXPANSION_LIMIT = 2**30
"""The most bytes to which a file may unpack, unless the file itself is larger."""

LONGEST_TEXT = 1024
"""The most characters of one string."""

NUMBERS = ("int8", "int16", "int32", "int64", "float32", "float64")
"""The types that arrays of numbers may have."""

Content = dict[str, NDArray[Any] | list[str]]
"""Arrays of numbers and lists of strings, by name."""

Layout = Mapping[str, tuple[np.dtype[Any] | None, tuple[str, ...]]]
"""Type (None for strings) and named extents of each member; extents of the same name must be equal."""


def write(path: Path, content: Content, *, version: int) -> None:
    """Write the content, the version of its layout and the release of adapt, completely or not at all.

    Raises:
        OSError: the folder does not exist or cannot be written.
    """
    arrays = {name: np.array(value, "<U") if isinstance(value, list) else value for name, value in content.items()}
    # A file may unpack to at most EXPANSION_LIMIT or its own size, so larger content is stored without compression.
    small = sum(array.nbytes for array in arrays.values()) + 1024 * (len(arrays) + 2) <= EXPANSION_LIMIT
    save = np.savez_compressed if small else np.savez
    members: dict[str, Any] = {"version": np.array(version, "<i8"), "release": np.array(adapt.__version__), **arrays}
    with replacing(path) as file:
        save(file, allow_pickle=False, **members)


def read(path: Path, *, version: int) -> Content:
    """Return the content of a file that `write` wrote, in this version of the layout or an earlier one.

    Nothing in the file is executed, and no more memory is used than the file's content needs. The caller must `check`
    names, types and shapes.

    Raises:
        OSError: the file cannot be opened.
        ValueError: the file is damaged, was not written by `write`, or needs a newer release.
    """
    with path.open("rb") as file:
        # Broken archives raise a dozen kinds of exceptions, from struct.error to RecursionError.
        try:
            with zipfile.ZipFile(file) as archive:
                _check_sizes(archive, file.seek(0, os.SEEK_END))
                names = [member.filename.removesuffix(".npy") for member in archive.infolist()]
                if len(set(names)) < len(names):
                    raise ValueError("it holds something twice")
                found = _read_member(archive, "version")
                if found.dtype != np.int64 or found.shape != ():
                    raise ValueError(f"version holds {found.dtype} {list(found.shape)}, expected one int64")
                release = _read_member(archive, "release").tolist() if "release" in names else None
                _check_version(int(found), version, release_of({"release": release}))
                arrays = {name: _read_member(archive, name) for name in names if name not in ("version", "release")}
        except Exception as error:
            raise ValueError(str(error)[:300] or type(error).__name__) from error
    return {name: array.tolist() if array.dtype.kind == "U" else array for name, array in arrays.items()}


def to_state(content: Content, *, version: int) -> dict[str, Any]:
    """Return a copy as plain integers, strings and tensors, which `torch.load(…, weights_only=True)` can read."""
    copies = {
        name: list(value) if isinstance(value, list) else torch.from_numpy(value.copy())
        for name, value in content.items()
    }
    return {"version": version, "release": adapt.__version__, **copies}


def from_state(state: Mapping[str, Any], *, version: int) -> dict[str, Any]:
    """Return the content of a state from `to_state`, in this version or an earlier one. The caller must `check` it.

    Raises:
        ValueError: the state has no version, or needs a newer release.
    """
    if not isinstance(state, Mapping) or "version" not in state:
        raise ValueError("it has no version")
    _check_version(state["version"], version, release_of(state))
    return {
        name: value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value
        for name, value in state.items()
        if name not in ("version", "release")
    }


def release_of(state: object) -> str | None:
    """Return the release of adapt that wrote a state; None unless it is a short printable string."""
    release = state.get("release") if isinstance(state, Mapping) else None
    return release if isinstance(release, str) and release.isprintable() and 0 < len(release) <= 40 else None


def check(content: Mapping[str, Any], layout: Layout) -> None:
    """Check that the content has exactly the members, types and shapes of the layout.

    Raises:
        TypeError: a member is neither an array nor a list of strings.
        ValueError: a member is missing, surplus, or of another type or shape.
    """
    wrong = sorted(ascii(name) for name in set(layout) ^ set(content))
    if wrong:
        expected = ", ".join(sorted(layout))
        raise ValueError(f"it must hold exactly {expected}; missing or too much: {', '.join(wrong)}"[:500])
    extents: dict[str, int] = {}
    for name, (dtype, shape) in layout.items():
        value = content[name]
        if dtype is None:
            if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
                raise TypeError(f"{name} must be a list of texts, got {value!r:.80}")
            found: tuple[int, ...] = (len(value),)
        else:
            if not isinstance(value, np.ndarray):
                raise TypeError(f"{name} must be an array (in a state, a tensor), got {type(value).__name__}")
            if value.dtype != dtype:
                raise ValueError(f"{name} holds {value.dtype}, expected {dtype}")
            found = value.shape
        if len(found) != len(shape) or any(
            extents.setdefault(extent, length) != length for extent, length in zip(shape, found, strict=True)
        ):
            expected = ", ".join(str(extents.get(extent, extent)) for extent in shape)
            raise ValueError(f"{name} has the shape {found}, expected [{expected}]")


def _check_version(found: object, version: int, release: str | None) -> None:
    """Refuse a later version, naming the release that wrote it if known."""
    if isinstance(found, bool) or not isinstance(found, int) or found < 1:
        raise ValueError(f"its version is {found!r:.80}, but versions are whole numbers from 1")
    if found > version:
        writer = f"adapt {release}, which wrote it," if release else "the release that wrote it"
        raise ValueError(
            f"its version is {found}, and adapt {adapt.__version__} reads versions up to {version}: "
            f"install {writer} or a later one"
        )


def _check_sizes(archive: zipfile.ZipFile, size: int) -> None:
    members = archive.infolist()
    expanded = sum(member.file_size for member in members)
    if expanded > max(EXPANSION_LIMIT, size):
        raise ValueError(f"it would unpack from {size} to {expanded} bytes")
    if any(member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for member in members):
        raise ValueError("it is packed by an unexpected method")


def _read_member(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """Return one array of the archive, after checking its size against its header."""
    member = archive.getinfo(f"{name}.npy")
    with archive.open(member) as stream:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError(f"{name} is stored in an unknown way")
        shape, transposed, dtype = np.lib.format.read_array_header_1_0(stream)
        text = dtype.kind == "U" and dtype.str.startswith("<") and 0 < dtype.itemsize <= 4 * LONGEST_TEXT
        if not text and dtype not in map(np.dtype, NUMBERS):
            raise ValueError(f"{name} holds {dtype}, expected texts of up to {LONGEST_TEXT} characters or numbers")
        size = math.prod(shape) * dtype.itemsize
        if transposed or min(shape, default=0) < 0 or stream.tell() + size != member.file_size:
            raise ValueError(f"{name} does not have the size that its header declares")
        content = stream.read(size)
        # zipfile compares the checksum only at the end of the stream.
        if len(content) != size or stream.read(1):
            raise ValueError(f"{name} ends early")
    # NumPy would raise SystemError when converting such numbers to strings.
    if text and np.ndarray(size // 4, "<u4", content).max(initial=0) > sys.maxunicode:
        raise ValueError(f"{name} holds numbers that are no characters")
    return np.ndarray(shape, dtype=dtype, buffer=content)
