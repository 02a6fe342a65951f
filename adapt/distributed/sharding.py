"""Layers whose rows are split between processes, as `torch.distributed.fsdp.fully_shard` does (DTensor).

Masters and sums are DTensors like their parameters. Kernels run on the pieces that this process holds, and their
figures are summed over the processes, so that every process gets the figures of whole layers. Element i of a layer
draws the same random number in any process, so a sharded run rounds like one on a single device.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeGuard, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adapt.kernels.stream import OptionalTensors, Tensors
from adapt.kernels.weights import Kernels, Rounding, Treatment

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_sharded(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Return whether the tensor is a DTensor, without importing torch.distributed.tensor, which is slow to import."""
    return hasattr(tensor, "device_mesh")


def check(name: str, parameter: Tensor) -> None:
    """Check that a parameter is replicated, or sharded in order along its first dimension.

    Raises:
        NotImplementedError: it has another placement, such as tensor parallelism's.
    """
    if not is_sharded(parameter):
        return
    pieces = [place for place in parameter.placements if not place.is_replicate()]
    if len(pieces) > 1 or not all(place.is_shard(0) and type(place).__name__ == "Shard" for place in pieces):
        raise NotImplementedError(
            f"{name} is spread over processes as {tuple(parameter.placements)}, but only sharding by whole rows is "
            "supported: shard with torch.distributed.fsdp.fully_shard alone, along dimension 0"
        )


def local(tensor: Tensor) -> Tensor:
    """Return the piece that this process holds, sharing its memory."""
    tensor = tensor.detach()
    return tensor.to_local() if is_sharded(tensor) else tensor


@overload
def full(tensors: Tensor) -> Tensor: ...
@overload
def full(tensors: Tensors) -> Tensors: ...
def full(tensors: Tensor | Tensors) -> Tensor | Tensors:
    """Gather a tensor, or each of several, from the pieces of all processes. Every process must call this."""
    if not isinstance(tensors, Tensor):
        return [full(tensor) for tensor in tensors]
    return tensors.full_tensor() if is_sharded(tensors) else tensors


def unequal(left: Tensor, right: Tensor) -> Tensor:
    """Return where two tensors of one shape differ, bool; torch 2.8 compares sharded ones by == alone."""
    return (left == right).logical_not()


def extremes(tensors: Tensors) -> list[tuple[float, float]]:
    """Return the smallest and largest element of each whole tensor, in one transfer from the device.

    They are (∞, −∞) for a tensor without elements, and both NaN if an element is NaN. Every process must call this.
    """
    ends = torch.stack([_ends(local(tensor)) for tensor in tensors])
    for group, indices in _groups(tensors).items():
        part = ends[indices]
        torch.distributed.all_reduce(part, torch.distributed.ReduceOp.MAX, group=group)
        ends[indices] = part
    return [(-negative, maximum) for negative, maximum in ends.tolist()]


def _ends(tensor: Tensor) -> Tensor:
    """Return the negative minimum and the maximum, [2]."""
    if not tensor.numel():
        return tensor.new_full((2,), -torch.inf)
    minimum, maximum = tensor.aminmax()
    return torch.stack((-minimum, maximum))


class FullTensors(Sequence[Any]):
    """A sequence of tensors, or of lists of them, that are gathered from all processes on access."""

    def __init__(self, items: Sequence[Any]) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: Any) -> Any:
        return FullTensors(self._items[index]) if isinstance(index, slice) else full(self._items[index])


def sharded_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Return the same values, distributed over the processes like `like`."""
    if is_sharded(like) and not is_sharded(tensor):
        from torch.distributed.tensor import distribute_tensor

        mesh, placements = like.device_mesh, like.placements
        # Every process has the whole tensor and takes its own piece; nothing is sent.
        return distribute_tensor(tensor.to(like.device), mesh, placements, src_data_rank=None)
    return full(tensor) if is_sharded(tensor) and not is_sharded(like) else tensor


def reshard_(module: nn.Module) -> None:
    """Make FSDP discard the whole weights that it gathered before their pieces changed."""
    for part in module.modules():
        if callable(reshard := getattr(part, "reshard", None)):
            reshard()


class ShardedKernels:
    """The functions of `adapt.kernels.Kernels` for sharded layers, with the figures of whole layers."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels

    def quantize_(self, sources: Tensors, outputs: Tensors, rounding: Rounding, figures: Tensor | None = None) -> None:
        self._kernels.quantize_(_shards(sources), _shards(outputs), _with_offsets(rounding, sources), figures)
        if figures is not None:
            _add_up(figures, sources)

    def store_(self, parameters: Tensors, masters: Tensors, rounding: Rounding, figures: Tensor) -> None:
        self._kernels.store_(_shards(parameters), _shards(masters), _with_offsets(rounding, masters), figures)
        _add_up(figures, masters)

    def squared_norms_(self, tensors: OptionalTensors, out: Tensor) -> None:
        self._kernels.squared_norms_(_shards(tensors), out)
        _add_up(out, tensors)

    def add_(self, sums: OptionalTensors, gradients: OptionalTensors, squared: Tensor, squared_sums: Tensor) -> None:
        self._kernels.add_(_shards(sums), _shards(gradients), squared, squared_sums)
        _add_up(squared_sums, sums)

    def accumulate_(
        self, sums: OptionalTensors, gradients: OptionalTensors, squared: Tensor, squared_sums: Tensor
    ) -> None:
        # Whether a gradient is finite is only known from the norms of all processes' pieces.
        self.squared_norms_(gradients, squared)
        self.add_(sums, gradients, squared, squared_sums)

    def restore_(
        self, parameters: Tensors | None, masters: Tensors, gradients: OptionalTensors, treatment: Treatment
    ) -> None:
        written = None if parameters is None else _shards(parameters)
        self._kernels.restore_(written, _shards(masters), _shards(gradients), treatment)

    def descend_(
        self,
        parameters: Tensors,
        masters: Tensors,
        gradients: OptionalTensors,
        buffers: OptionalTensors,
        treatment: Treatment,
        rates: NDArray[np.floating],
        rounding: Rounding,
        figures: Tensor,
    ) -> None:
        pieces = _shards(parameters), _shards(masters), _shards(gradients), _shards(buffers)
        self._kernels.descend_(*pieces, treatment, rates, _with_offsets(rounding, masters), figures)
        _add_up(figures, masters)


def _shards(tensors: Sequence[Any]) -> list[Any]:
    return [None if tensor is None else local(tensor) for tensor in tensors]


def _axis(tensor: Tensor) -> int | None:
    """Return the dimension of the mesh along which the rows are sharded; None if they are not."""
    placements = tensor.placements if is_sharded(tensor) else ()
    return next((axis for axis, place in enumerate(placements) if not place.is_replicate()), None)


def _with_offsets(rounding: Rounding, tensors: Tensors) -> Rounding:
    """Add the offsets of this process's pieces to the random stream's."""
    return rounding._replace(offsets=rounding.offsets + np.array([_offset(tensor) for tensor in tensors], np.int64))


def _offset(tensor: Tensor) -> int:
    """Return the index within its layer of the first element of this process's piece."""
    axis = _axis(tensor)
    if axis is None or not is_sharded(tensor) or not tensor.numel():
        return 0
    mesh = tensor.device_mesh
    rows = -(-tensor.shape[0] // mesh.size(axis))
    first = min(rows * mesh.get_local_rank(axis), tensor.shape[0])
    return int(first * tensor.stride(0))


def _add_up(figures: Tensor, tensors: OptionalTensors) -> None:
    """Replace the figures [layers, …] of pieces by those of whole layers."""
    for group, indices in _groups(tensors).items():
        part = figures[indices]
        torch.distributed.all_reduce(part, group=group)
        figures[indices] = part


def _groups(tensors: OptionalTensors) -> dict[Any, list[int]]:
    """Return the indices of the sharded tensors, by the group of processes that hold their pieces."""
    groups: dict[Any, list[int]] = {}
    for index, tensor in enumerate(tensors):
        axis = None if tensor is None else _axis(tensor)
        if axis is not None and tensor is not None and is_sharded(tensor):
            groups.setdefault(tensor.device_mesh.get_group(axis), []).append(index)
    return groups
