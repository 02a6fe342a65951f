"""The passes over weights whose channels have their own learned formats: all tensors of a network in one call.

Every element is rounded as described in `adapt.kernels.learned_steps`, by the row of its channel.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor

from adapt.kernels import family_module
from adapt.kernels.stream import OptionalTensors, Tensors


class Layout(NamedTuple):
    """Where a tensor's channels lie in memory. Their rows of the table are consecutive.

    In memory order, element e has the row first + (e // stride) % size + size·((e // group_stride) % groups).
    """

    first: int
    stride: int
    size: int
    group_stride: int
    groups: int

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.size * self.groups

    def rows(self, elements: Tensor) -> Tensor:
        """Return the rows of these elements of the tensor, in memory order."""
        groups = (elements // self.group_stride) % self.groups
        return self.first + (elements // self.stride) % self.size + self.size * groups


class ChannelKernels(Protocol):
    """The passes of a back end. Tensors are dense float32 on one device; those of one index share shape and strides.

    `rows` is float32 [formats, 5] on the device, the table of `adapt.kernels.learned_steps`.
    """

    def quantize_(self, sources: Tensors, outputs: Tensors, rows: Tensor, layouts: Sequence[Layout]) -> None:
        """outputs[i] ← Q(sources[i]). An output may be its own source."""

    def back_(
        self,
        gradients: OptionalTensors,
        masters: Tensors,
        squared: Tensor,
        rows: Tensor,
        layouts: Sequence[Layout],
        sums: Tensor | None,
        *,
        scaling: int,
        delta: float,
    ) -> None:
        """Turn gradients[i] with respect to Q(masters[i]) into the one with respect to masters[i], in place.

        Add the sums of `LearnedKernels.backward` over the elements of each channel to its row of `sums`. A gradient
        that is not finite becomes 0 and adds nothing.

        Args:
            squared: ‖gradients[i]‖₂², float64 [L] on the device; not read for missing gradients.
            sums: float64 [formats, 4] on the device, or None to skip them.
            scaling, delta: as in `LearnedKernels.backward`.
        """


def channel_kernels(device: torch.device) -> ChannelKernels:
    """Return the passes of the back end that `adapt.kernels.backend` chooses for this device."""
    return cast(ChannelKernels, family_module("channels", device))
