"""The packed file: a safetensors file whose quantised tensors take the bits of their words, or fewer.

Nothing in it is executed. It holds version and checksum, in JSON under the key "adapt" of its metadata, and tensors:

* words, as bytes under the parameter's name: either packed in their word lengths ("bits", `adapt.export.bits`), or as
  int8, int16 or int32 words, low bytes first, compressed by zstd ("zstd"), whichever is smaller;
* of the rest of the state_dict what is larger than 4 kB, under its own name, readable by any reader of safetensors;
* ":formats", where formats have channels: their columns, one after the other, compressed by zstd;
* ":small": a safetensors file of all smaller tensors, compressed by zstd, as names and shapes outweigh a small tensor.
  The key "adapt" of its metadata is a header in JSON: formats, and how each tensor of words is encoded.

Beside words and floating-point tensors a file takes about 100 bytes for each tensor of words, 20 for each other one, 6
to 10 for each channel that has a format of its own, and 1 kB. Version 1 had no ":small": its header, with version and
checksum, was in the metadata, and every tensor under its own name.
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
from adapt.export.encoding import LARGEST_RATIO, compressed, content_size, decoded, decompressed, encoded
from adapt.export.extras import needs
from adapt.files import replacing
from adapt.numerics import Format

VERSION = 2
KEY = "adapt"
KIND = "adapt.packed"

_FORMATS, _SMALL = ":formats", ":small"

_SMALL_SIZE = 4096
"""Bytes of the largest tensor that is stored with others."""

_SMALL_SUM = 2**24
"""Bytes that all of these may take together, so that a small file cannot unpack to any size."""


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
    tensors: dict[str, Tensor] = {name: tensor.contiguous() for name, tensor in contents.tensors.items()}
    header: dict[str, Any] = {"adapt": adapt.__version__, "words": {}}
    for name, words in contents.words.items():
        encoding, content = encoded(words.numpy(), contents.formats[name])
        header["words"][name] = {"encoding": encoding, "shape": list(words.shape)}
        tensors[name] = _bytes(content)
    header["formats"], columns = packed_formats(contents.formats)
    if columns:
        tensors[_FORMATS] = _bytes(columns)
    header["aliases"] = dict(contents.aliases)
    header["origin"] = dict(contents.origin)
    content = joined(header, tensors)
    with replacing(Path(path)) as file:
        file.write(content)


def joined(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
    """Return a packed file of a header and the tensors that it describes."""
    safetensors = needs("safetensors.torch", "export")
    words = header.get("words", {})
    small = {name: tensor for name, tensor in tensors.items() if name not in words and tensor.nbytes <= _SMALL_SIZE}
    if sum(tensor.nbytes for tensor in small.values()) > _SMALL_SUM // 2:  # the other half is for names and the header
        small = {}
    stored = {name: tensor for name, tensor in tensors.items() if name not in small}
    stored[_SMALL] = _bytes(compressed(safetensors.save(small, {KEY: _text(header)})))
    hull = {"format": KIND, "version": VERSION}
    content: bytes = safetensors.save(stored, {KEY: _text(hull | {"checksum": _checksum(hull, stored)})})
    return content


def read(path: str | os.PathLike[str]) -> Contents:
    """Read a packed file. Nothing in it is executed.

    Raises:
        ModuleNotFoundError: safetensors or zstandard are missing.
        OSError: the file cannot be opened.
        ValueError: it is truncated, damaged, altered, of a later version, or no packed file.
    """
    header, tensors = separated(path)
    try:
        return _unpacked(header, tensors)
    except (ValueError, TypeError, KeyError, OverflowError, MemoryError, RecursionError) as error:
        raise ValueError(f"{path} is not a readable packed file: {error!s:.300}") from error


def stored_bytes(path: str | os.PathLike[str]) -> dict[str, tuple[str, int]]:
    """Return for every tensor of words in a packed file its encoding and the bytes that it takes.

    Raises:
        OSError, ValueError: as `read`.
    """
    header, tensors = separated(path)
    return {name: (str(entry["encoding"]), tensors[name].numel()) for name, entry in header["words"].items()}


def separated(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the header and the tensors of a packed file whose kind, version and checksum are right.

    Raises:
        OSError, ValueError: as `read`.
    """
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
        if version > 1:
            header, small = _small(tensors.pop(_SMALL))
            tensors |= small
        for name, entry in _mapping(header, "words").items():
            if not isinstance(entry, dict) or entry.get("encoding") not in ("bits", "zstd"):
                raise ValueError(f"it does not say how {name:.80} is encoded")
            if name not in tensors or tensors[name].dtype != torch.uint8:
                raise ValueError(f"the words of {name:.80} are missing")
    except Exception as error:  # safetensors and json raise half a dozen kinds
        raise ValueError(f"{path} is not a readable packed file: {error!s:.300}") from error
    return header, tensors


def _small(content: Tensor) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header of a file and its small tensors."""
    frame = content.numpy().tobytes()
    size = content_size(frame)
    if size > max(_SMALL_SUM, LARGEST_RATIO * len(frame)):
        raise ValueError(f"{len(frame)} compressed bytes are too few for {size}")
    plain = decompressed(frame, size)
    tensors = needs("safetensors.torch", "export").load(plain)
    length = int.from_bytes(plain[:8], "little")
    header = json.loads(json.loads(plain[8 : 8 + length])["__metadata__"][KEY])
    if not isinstance(header, dict):
        raise ValueError("its header is not that of a packed file")
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


def _text(header: Mapping[str, Any]) -> str:
    return json.dumps(header, ensure_ascii=False, separators=(",", ":"))


def _bytes(content: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(content, np.uint8).copy())
