"""The state of a run within the optimizer's: what both kinds of runs need to pack, check and upgrade it."""

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from adapt.layers import layer_bits
from adapt.layers.layer_bits import LayerBits
from adapt.numerics import Bounds, Format, pack, unpack

KEY = "adapt"
"""Key of the controller's state in `optimizer.state_dict()`."""

FORMATS = "tensor_formats"
"""Key of the formats of all tensors, as bytes, in a run's state."""

LAYER_BITS = "layer_bits"
"""Key of the bounds of the layers' words by pattern, as bytes, in a run's state; absent if there are none."""

VERSION = 2
"""Version 2 added the formats of all tensors; everything else is as in version 1."""


def copied(names: Iterable[str], tensors: Iterable[Tensor | None]) -> dict[str, Tensor]:
    """Return copies of those tensors that are not None, by name."""
    return {name: t.detach().clone() for name, t in zip(names, tensors, strict=True) if t is not None}


def to_bytes(value: Any) -> bytes:
    """Serialise a tree whose tensors grow during a run into bytes.

    `torch.distributed.checkpoint` reads into existing tensors, so their shapes must not change.
    """
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def from_bytes(content: bytes) -> Any:
    """Return what `to_bytes` serialised, without executing any of it.

    Raises:
        ValueError: it is damaged.
    """
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen kinds
        raise ValueError(f"the precision state is damaged: {error!s:.200}") from error


def pack_formats(formats: Mapping[str, Format]) -> dict[str, Any]:
    """Return the formats by name, as numbers and lists."""
    return {name: pack(form) for name, form in formats.items()}


def unpack_formats(packed: Any) -> dict[str, Format]:
    """Return the formats that `pack_formats` packed.

    Raises:
        ValueError: these are not formats by name.
    """
    if not isinstance(packed, Mapping) or not all(isinstance(name, str) for name in packed):
        raise ValueError(f"formats should be packed by name, got {packed!r:.80}")
    return {name: unpack(form) for name, form in packed.items()}


def pack_bits(bits: LayerBits | None) -> dict[str, bytes]:
    """Return the entries of a state for the bounds of the layers' words, empty if there are none."""
    return {} if bits is None else {LAYER_BITS: to_bytes(dict(bits))}


def unpack_bits(state: Mapping[str, Any], *, shortest: int, longest: int) -> dict[str, Bounds] | None:
    """Return the bounds that `pack_bits` packed into a state; None if there are none.

    Raises:
        ValueError: these are not bounds by pattern, of words of `shortest` to `longest` bits.
    """
    if LAYER_BITS not in state:
        return None
    content = state[LAYER_BITS]
    try:
        return layer_bits.checked(from_bytes(content), shortest=shortest, longest=longest)
    except TypeError as error:
        raise ValueError(f"the precision state should hold bits by pattern: {error!s:.200}") from error


def is_state(value: Any) -> bool:
    """Return whether a value is the state of a run, of any version."""
    return isinstance(value, Mapping) and {"version", "masters", "layers"} <= set(value)


def upgraded(state: Any) -> Any:
    """Convert a state of an earlier version to the present one.

    Anything else is returned unchanged, for `check` to refuse.
    """
    if not (isinstance(state, Mapping) and type(state.get("version")) is int and state["version"] == 1):
        return state
    if isinstance(state.get("trace"), Mapping):
        # The first release saved no gradients between micro-batches and no activations, and its trace is a mapping.
        state = {"gradients": {}, "activations": {}, **state, "trace": to_bytes(state["trace"])}
    return {FORMATS: b"", **state, "version": VERSION}


def check_version(state: Mapping[str, Any]) -> None:
    """Refuse a state of another version; those of earlier ones have been upgraded.

    Raises:
        ValueError: this package does not read the version.
    """
    found = state.get("version")
    if type(found) is not int or found != VERSION:
        raise ValueError(
            f"the precision state has version {found!r:.80}, but this package reads versions up to {VERSION}"
        )


def check_kinds(state: Mapping[str, Any], kinds: Mapping[str, type]) -> None:
    """Check that a state has fields of these kinds, by name.

    Raises:
        ValueError: one is missing or of another kind.
    """
    for name, kind in kinds.items():
        value = state.get(name)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ValueError(f"the precision state should hold {name!r} as {kind.__name__}, got {value!r:.80}")


def check_tensors(field: str, tensors: Mapping[str, Any], like: Mapping[str, Tensor]) -> None:
    """Check that tensors have the names, shapes and types of `like`.

    Raises:
        ValueError: one is missing or different.
    """
    for name, model in like.items():
        tensor = tensors.get(name)
        if (
            not isinstance(tensor, Tensor)
            or tensor.layout != torch.strided
            or tensor.shape != model.shape
            or tensor.dtype != model.dtype
        ):
            found = f"{tensor.dtype} {list(tensor.shape)}" if isinstance(tensor, Tensor) else f"{tensor!r:.80}"
            raise ValueError(
                f"the precision state should hold {field!r} of {name} as {model.dtype} {list(model.shape)}, got {found}"
            )


def check_groups(state: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]) -> None:
    """Refuse an optimizer's state that torch would refuse, before the controller has changed.

    Raises:
        ValueError: it is not an optimizer's state, or it has other parameter groups.
    """
    saved = state.get("param_groups")
    if not isinstance(state.get("state"), Mapping) or not isinstance(saved, list):
        raise ValueError(
            "the optimizer's state should hold 'state' and 'param_groups', got the state of something else"
        )
    sizes = [len(group["params"]) for group in groups]
    found = [len(g["params"]) if isinstance(g, Mapping) and isinstance(g.get("params"), list) else None for g in saved]
    if found != sizes:
        raise ValueError(
            f"the optimizer's state is of groups with {found} parameters, but this optimizer has {sizes}: "
            "load a state of the same network"
        )
