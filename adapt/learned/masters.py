"""Masters whose copies are rounded channel by channel, and what their gradients say of steps and ranges."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adapt.kernels.learned_torch import Row, partials, rounded
from adapt.learned.formats import Formats
from adapt.masters import Masters

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


@dataclass(frozen=True)
class Channels:
    """Where a weight's output channels are: how to view it, and the shape in which their formats broadcast with that.

    Attributes:
        split: into how many parts to cut the first dimension; 1 leaves it.
        formats: the shape of the channels' formats.
    """

    split: int
    formats: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many channels there are."""
        return int(torch.Size(self.formats).numel())

    @property
    def summed(self) -> list[int]:
        """The dimensions of the view that lie within a channel."""
        return [i for i, size in enumerate(self.formats) if size == 1]

    def view(self, weight: Tensor) -> Tensor:
        """The weight, cut so that its channels' formats broadcast with it."""
        return weight.unflatten(0, (self.split, -1)) if self.split > 1 else weight  # type: ignore[no-untyped-call]


def channels_of(weight: Tensor, owner: nn.Module | None, *, per_channel: bool = True) -> Channels:
    """Output channels: rows of a linear layer, convolution, recurrent gate or projection; columns of an embedding.

    A transposed convolution has its output channels in the second dimension, anew in each group. A bias is one
    channel, and so is everything with `per_channel` off.

    Args:
        weight: the parameter.
        owner: the module that has it, where it is known.
    """
    ones = [1] * weight.ndim
    if weight.ndim < 2 or not per_channel or not weight.numel():
        return Channels(1, tuple(ones))
    if isinstance(owner, _EMBEDDINGS):
        return Channels(1, (1, weight.shape[1]))
    if isinstance(owner, _TRANSPOSED):
        shape = (weight.shape[1], *ones[2:])
        return Channels(owner.groups, (owner.groups, 1, *shape) if owner.groups > 1 else (1, *shape))
    return Channels(1, (weight.shape[0], *ones[1:]))


class LearnedMasters(Masters):
    """W and Ŵ of weights whose channels have steps and ranges of their own. Rounding is to nearest in every view.

    Args:
        parameters: what to keep masters of, by name; their values now are the masters.
        channels: the channels of each.
        formats: the formats of all tensors of the network, these among them by name.

    Raises:
        ValueError: a parameter's memory has gaps or overlaps.
    """

    def __init__(self, parameters: Mapping[str, Tensor], channels: Sequence[Channels], formats: Formats) -> None:
        super().__init__(parameters, seed=0, stochastic=False)
        self.channels, self.formats = list(channels), formats
        self.skipped = torch.zeros(len(self.names), dtype=torch.int64, device=self.device)

    def back(self, gradients: Sequence[Tensor | None], scaling: str, delta: float, *, collect: bool) -> None:
        """p ← W, and each gradient, which is that to Ŵ, becomes the one to W; in place.

        A gradient that is not finite becomes zero, counts as skipped and tells nothing.

        Args:
            gradients: of each parameter, laid out as it is; None where there is none.
            scaling, delta: how gradients go through rounding.
            collect: whether to add to the formats' sums what steps and ranges get.
        """
        self.show("masters", anew=True)
        for i, gradient in enumerate(gradients):
            if gradient is None:
                continue
            sound = torch.isfinite(gradient.sum())
            self.skipped[i] += (~sound).long()
            # Not a product with zero, which leaves NaN.
            gradient.copy_(torch.where(sound, gradient, 0.0))
            channels = self.channels[i]
            back = partials(channels.view(gradient), channels.view(self.weights[i]), self._row(i), scaling, delta)
            if collect:
                place, axes = self.formats.places[self.names[i]], channels.summed
                parts = (back.step, back.above, back.below, channels.view(gradient).square())
                sums = [part.sum(axes, dtype=torch.float64).flatten() for part in parts]
                self.formats.sums[place] += torch.stack(sums, dim=1)
            channels.view(gradient).copy_(back.values)

    @torch.no_grad()
    def store(self, step: int) -> None:
        """W ← p, p ← Q(W)."""
        torch._foreach_copy_(self.weights, self.parameters)
        for i, parameter in enumerate(self.parameters):
            self._quantize(i, parameter, parameter)
        self.views = ["training"] * len(self.parameters)

    def count_nonzeros(self) -> None:
        """Count the elements of each Ŵ that are not zero; the parameters must hold it."""
        self.nonzeros.copy_(torch.stack([torch.count_nonzero(p.detach()) for p in self.parameters]))

    def round_parameters(self) -> None:
        """Round to nearest, in place, what the parameters hold now."""
        for i, parameter in enumerate(self.parameters):
            self._quantize(i, parameter, parameter)

    def _measure(self, index: int) -> None:
        """Nobody asks for figures but through `count_nonzeros`."""

    def rows(self, i: int) -> Tensor:
        """A master as [channels, elements of a channel]: a copy."""
        channels = self.channels[i]
        view = channels.view(self.weights[i])
        kept = [d for d in range(view.ndim) if d not in channels.summed]
        return view.permute(*kept, *channels.summed).reshape(channels.count, -1)

    def _round(self, indices: Sequence[int], outputs: Sequence[Tensor], *, stochastic: bool) -> None:
        for i, output in zip(indices, outputs, strict=True):
            self._quantize(i, self.weights[i], output)

    def _quantize(self, i: int, source: Tensor, output: Tensor) -> None:
        view = self.channels[i].view
        with torch.no_grad():
            view(output.detach()).copy_(rounded(view(source.detach()), self._row(i)))

    def _row(self, i: int) -> Row:
        """The channels' formats, in the shape in which they broadcast with the weight."""
        rows = self.formats.rows[self.formats.places[self.names[i]]]
        return Row(*(column.view(self.channels[i].formats) for column in rows.unbind(1)))
