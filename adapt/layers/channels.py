"""The output channels of a layer's weight, and where they lie in it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adapt.kernels.channels import Layout
from adapt.layers.products import EMBEDDINGS, TRANSPOSED_CONVOLUTIONS, TransposedLinear


@dataclass(frozen=True)
class Channels:
    """Where a weight's output channels lie: how to view the weight, and the shape in which formats broadcast with it.

    Attributes:
        split: the number of parts into which to split the first dimension; 1 leaves it whole.
        formats: the shape of the channels' formats, which broadcasts with the view.
    """

    split: int
    formats: tuple[int, ...]

    @property
    def count(self) -> int:
        """The number of channels."""
        return int(torch.Size(self.formats).numel())

    @property
    def axis(self) -> int | None:
        """The dimension of the weight along which the channels lie; None if there is only one channel."""
        if self.count == 1:
            return None
        return 1 if self.split > 1 else next(i for i, size in enumerate(self.formats) if size > 1)

    @property
    def summed(self) -> list[int]:
        """The dimensions of the view that lie within a channel."""
        return [i for i, size in enumerate(self.formats) if size == 1]

    def layout(self, weight: Tensor, first: int) -> Layout:
        """Return where the channels lie in the weight's memory; `first` is the table row of the first channel."""
        if self.count == 1:
            return Layout(first, max(weight.numel(), 1), 1, max(weight.numel(), 1), 1)
        # If the first dimension is split, it holds the groups, and the channels lie in the next dimension.
        along = self.axis
        assert along is not None
        stride, size = weight.stride(along), weight.shape[along]
        if self.split == 1:
            return Layout(first, stride, size, stride * size, 1)
        return Layout(first, stride, size, weight.stride(0) * (weight.shape[0] // self.split), self.split)

    def view(self, weight: Tensor) -> Tensor:
        """Return a view of the weight with which its channels' formats broadcast."""
        return weight.unflatten(0, (self.split, -1)) if self.split > 1 else weight  # type: ignore[no-untyped-call]

    def rows(self, weight: Tensor) -> Tensor:
        """Return the weight, or a tensor laid out like it, as [channels, elements of a channel]: a view if possible."""
        view = self.view(weight)
        kept = [d for d in range(view.ndim) if d not in self.summed]
        return view.permute(*kept, *self.summed).reshape(self.count, -1)

    def spread(self, values: Tensor, weight: Tensor) -> Tensor:
        """Return the channels' values, [channels], in a shape that broadcasts with the weight."""
        shaped = values.view(self.formats)
        if self.split == 1:
            return shaped
        return shaped.expand(-1, weight.shape[0] // self.split, *shaped.shape[2:]).flatten(0, 1)


def channels_of(weight: Tensor, owner: nn.Module | None, *, per_channel: bool = True) -> Channels:
    """Return the output channels of a weight.

    These are the rows of a linear layer, convolution, recurrent gate or projection, and the columns of an embedding and
    of transformers' `Conv1D`. A transposed convolution has its output channels in the second dimension, separately for
    each group. A bias is one channel, and so is every weight if `per_channel` is False.

    Args:
        weight: the parameter.
        owner: the module that has it, if known.
    """
    ones = [1] * weight.ndim
    if weight.ndim < 2 or not per_channel or not weight.numel():
        return Channels(1, tuple(ones))
    if isinstance(owner, (*EMBEDDINGS, TransposedLinear)):
        return Channels(1, (1, weight.shape[1]))
    if isinstance(owner, TRANSPOSED_CONVOLUTIONS):
        shape = (weight.shape[1], *ones[2:])
        return Channels(owner.groups, (owner.groups, 1, *shape) if owner.groups > 1 else (1, *shape))
    return Channels(1, (weight.shape[0], *ones[1:]))


def channels_by_layer(
    layers: Mapping[str, Tensor], module: nn.Module | None, *, per_channel: bool = True
) -> list[Channels]:
    """Return the output channels of each layer's weight; without a module, its rows."""
    owners: dict[int, nn.Module] = {}
    for part in () if module is None else module.modules():
        for parameter in part.parameters(recurse=False):
            owners.setdefault(id(parameter), part)
    return [channels_of(weight, owners.get(id(weight)), per_channel=per_channel) for weight in layers.values()]


class ByChannel(Sequence[Any]):
    """A sequence of tensors that are read as [channels, elements of a channel]."""

    def __init__(self, tensors: Sequence[Tensor], channels: Sequence[Channels]) -> None:
        self._tensors, self._channels = tensors, channels

    def __len__(self) -> int:
        return len(self._tensors)

    def __getitem__(self, index: Any) -> Any:
        return self._channels[index].rows(self._tensors[index])
