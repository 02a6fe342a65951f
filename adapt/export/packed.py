"""The packed file: a safetensors file whose quantised tensors take the bits of their words, or fewer.

Nothing in it is executed. It holds, under the key "adapt" of its metadata, a header in JSON (version, checksum,
formats, how each tensor of words is encoded) and the tensors:

* words, as bytes under the parameter's name: either packed in their word lengths ("bits", `adapt.export.bits`), or as
  int8, int16 or int32 words, low bytes first, compressed by zstd ("zstd"), whichever is smaller;
* everything else of the state_dict under its own name, readable by any reader of safetensors;
* ":formats", where formats have channels: their columns, one after the other, compressed by zstd.

Beside words and floating-point tensors a file takes about 100 bytes for each tensor, 6 to 10 for each channel that has
a format of its own, and 1 kB.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import adapt
from adapt.export.columns import packed_formats, unpacked_formats
from adapt.export.encoding import decoded, encoded
from adapt.export.extras import needs
from adapt.files import replacing
from adapt.numerics import Format

VERSION = 1
KEY = "adapt"
KIND = "adapt.packed"

_FORMATS = ":formats"


class Contents(NamedTuple):
    """What a packed file holds: the attributes of `adapt.export.Exported` without the architecture."""

    words: Mapping[str, Tensor]
    formats: Mapping[str, Format]
    tensors: Mapping[str, Tensor]
    aliases: Mapping[str, str]
    origin: Mapping[str, str]


def write(contents: Contents, path: str | os.PathLike[str]) -> None:
    """Write a packed file. What was there stays until the new file is complete.

    Raises:
        ModuleNotFoundError: safetensors or zstandard are missing.
        OSError: the folder does not exist or cannot be written.
    """
    safetensors = needs("safetensors.torch", "export")
    tensors: dict[str, Tensor] = {name: tensor.contiguous() for name, tensor in contents.tensors.items()}
    header: dict[str, Any] = {"format": KIND, "version": VERSION, "adapt": adapt.__version__}
    header["words"] = {}
    for name, words in contents.words.items():
        encoding, content = encoded(words.numpy(), contents.formats[name])
        header["words"][name] = {"encoding": encoding, "shape": list(words.shape)}
        tensors[name] = _bytes(content)
    header["formats"], columns = packed_formats(contents.formats)
    if columns:
        tensors[_FORMATS] = _bytes(columns)
    header["aliases"] = dict(contents.aliases)
    header["origin"] = dict(contents.origin)
    header["checksum"] = _checksum(header, tensors)
    content = safetensors.save(tensors, {KEY: json.dumps(header, ensure_ascii=False, separators=(",", ":"))})
    with replacing(Path(path)) as file:
        file.write(content)


def read(path: str | os.PathLike[str]) -> Contents:
    """Read a packed file. Nothing in it is executed.

    Raises:
        ModuleNotFoundError: safetensors or zstandard are missing.
        OSError: the file cannot be opened.
        ValueError: it is truncated, damaged, altered, of a later version, or no packed file.
    """
    header, tensors = _read(path)
    try:
        return _unpacked(header, tensors)
    except (ValueError, TypeError, KeyError, OverflowError, MemoryError, RecursionError) as error:
        raise ValueError(f"{path} is not a readable packed file: {error!s:.300}") from error


def stored_bytes(path: str | os.PathLike[str]) -> dict[str, tuple[str, int]]:
    """Return for every tensor of words in a packed file its encoding and the bytes that it takes.

    Raises:
        OSError, ValueError: as `read`.
    """
    header, tensors = _read(path)
    return {name: (str(entry["encoding"]), tensors[name].numel()) for name, entry in header["words"].items()}


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of a packed file whose kind, version and checksum are right."""
    safetensors = needs("safetensors", "export")
    with open(path, "rb"):
        pass
    try:
        with safetensors.safe_open(os.fspath(path), framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            if KEY not in metadata:
                raise ValueError("it is a safetensors file, but not one that adapt packed")
            header = json.loads(metadata[KEY])
            if not isinstance(header, dict) or header.get("format") != KIND:
                raise ValueError("its header is not that of a packed file")
            version = header.get("version")
            if type(version) is not int or not 1 <= version <= VERSION:
                raise ValueError(f"it has version {version!r:.80}, but this package reads up to {VERSION}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if header.pop("checksum", None) != _checksum(header, tensors):
            raise ValueError("its checksum does not match: it is damaged or was altered")
        for name, entry in _mapping(header, "words").items():
            if not isinstance(entry, dict) or entry.get("encoding") not in ("bits", "zstd"):
                raise ValueError(f"it does not say how {name:.80} is encoded")
            if name not in tensors or tensors[name].dtype != torch.uint8:
                raise ValueError(f"the words of {name:.80} are missing")
    except Exception as error:  # safetensors and json raise half a dozen kinds
        raise ValueError(f"{path} is not a readable packed file: {error!s:.300}") from error
    return header, tensors


def _unpacked(header: Mapping[str, Any], tensors: dict[str, Tensor]) -> Contents:
    columns = tensors.pop(_FORMATS, None)
    formats = unpacked_formats(_mapping(header, "formats"), b"" if columns is None else columns.numpy().tobytes())
    words = {}
    for name, entry in header["words"].items():
        shape = entry.get("shape")
        if not isinstance(shape, list) or not all(type(size) is int and 0 <= size < 2**48 for size in shape):
            raise ValueError(f"the shape of {name:.80} does not make sense: {shape!r:.80}")
        if name not in formats:
            raise ValueError(f"{name:.80} has no format")
        words[name] = decoded(tensors.pop(name).numpy().tobytes(), entry["encoding"], shape, formats[name])
    known = {*words, *tensors}
    aliases, origin = _mapping(header, "aliases"), _mapping(header, "origin")
    if not all(isinstance(text, str) for text in (*aliases.values(), *origin.values())):
        raise ValueError("its aliases and its origin must be text")
    if set(aliases) & known or not set(aliases.values()) <= known:
        raise ValueError("its aliases do not stand for what it holds")
    return Contents(words, formats, tensors, aliases, origin)


def _mapping(header: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = header.get(name)
    if not isinstance(value, dict):
        raise ValueError(f"its header should hold {name!r} by name, got {value!r:.80}")
    return value


def _checksum(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the header in a canonical form and of all tensors in the order of their names."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True, separators=(",", ":")).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name}:{tensor.dtype}:{list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _bytes(content: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(content, np.uint8).copy())
