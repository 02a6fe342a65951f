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
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adapt.export.columns import packed_formats, unpacked_formats
from adapt.export.encoding import decoded, encoded
from adapt.export.exported import Exported
from adapt.export.extras import needs
from adapt.export.structure import structured
from adapt.files import replacing

VERSION = 1
KEY = "adapt"
KIND = "adapt.packed"

_FORMATS = ":formats"


def save(exported: Exported, path: str | os.PathLike[str]) -> None:
    """Write a captured network as a packed file. What was there stays until the new file is complete.

    Raises:
        ModuleNotFoundError: safetensors or zstandard are missing.
        OSError: the folder does not exist or cannot be written.
    """
    safetensors = needs("safetensors.torch", "export")
    import adapt

    tensors: dict[str, Tensor] = {name: tensor.contiguous() for name, tensor in exported.tensors.items()}
    header: dict[str, Any] = {"format": KIND, "version": VERSION, "adapt": adapt.__version__}
    header["words"] = {}
    for name, words in exported.words.items():
        encoding, content = encoded(words.numpy(), exported.formats[name])
        header["words"][name] = {"encoding": encoding, "shape": list(words.shape)}
        tensors[name] = _bytes(content)
    header["formats"], columns = packed_formats(exported.formats)
    if columns:
        tensors[_FORMATS] = _bytes(columns)
    header["aliases"] = dict(exported.aliases)
    header["origin"] = dict(exported.origin)
    header["checksum"] = _checksum(header, tensors)
    content = safetensors.save(tensors, {KEY: json.dumps(header, ensure_ascii=False, separators=(",", ":"))})
    with replacing(Path(path)) as file:
        file.write(content)


def load(path: str | os.PathLike[str], module: nn.Module | None = None) -> Exported:
    """Read a packed file. Nothing in it is executed.

    The file holds no architecture: code does that better than a serialised graph, which ties a network to one shape of
    inputs and to one version of torch. Where the code is not at hand, an ONNX file carries both.

    Args:
        path: the file.
        module: an instance of the trained network's class, with any weights, which is copied. Without it the result
            has words, formats and tensors, but `Exported.module()` raises.

    Raises:
        ModuleNotFoundError: safetensors or zstandard are missing.
        OSError: the file cannot be opened.
        ValueError: it is truncated, damaged, altered, of a later version or no packed file; or it is of another network
            than the module.
    """
    header, tensors = _read(path)
    try:
        exported = _unpacked(header, tensors)
    except (ValueError, TypeError, KeyError, OverflowError, MemoryError, RecursionError) as error:
        raise ValueError(f"{path} is not a readable packed file: {error!s:.300}") from error
    return exported if module is None else structured(exported, module)


def stored_bytes(path: str | os.PathLike[str]) -> dict[str, tuple[str, int]]:
    """Return for every tensor of words in a packed file its encoding and the bytes that it takes.

    Raises:
        OSError, ValueError: as `load`.
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


def _unpacked(header: Mapping[str, Any], tensors: dict[str, Tensor]) -> Exported:
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
    return Exported(words, formats, tensors, aliases, None, origin)


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
