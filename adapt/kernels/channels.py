"""The passes over weights whose channels have learned formats of their own: all tensors of a network in one call.

What becomes of one element is what `adapt.kernels.learned` says, by the row of the element's channel.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor

from adapt.kernels import companion


class Layout(NamedTuple):
    """Where a tensor's channels lie. Their rows of the table are neighbours.

    In memory order, element e has the row first + (e // stride) % size + size·((e // group_stride) % groups).
    """

    first: int
    stride: int
    size: int
    group_stride: int
    groups: int

    @property
    def channels(self) -> int:
        """How many channels there are."""
        return self.size * self.groups


class ChannelKernels(Protocol):
    """What a back end offers. Tensors are dense float32 on one device; those of one place are laid out alike.

    `rows` is float32 [formats, 5] on the device, the table of `adapt.kernels.learned`.
    """

    def quantize_(
        self, sources: Sequence[Tensor], outputs: Sequence[Tensor], rows: Tensor, layouts: Sequence[Layout]
    ) -> None:
        """outputs[i] ← Q(sources[i]). An output may be its own source."""

    def back_(
        self,
        gradients: Sequence[Tensor | None],
        masters: Sequence[Tensor],
        squared: Tensor,
        rows: Tensor,
        layouts: Sequence[Layout],
        sums: Tensor | None,
        *,
        scaling: int,
        delta: float,
    ) -> None:
        """gradients[i], with regard to Q(masters[i]), becomes the one with regard to masters[i]; in place.

        The table's rows of `sums`, float64 [formats, 4] on the device, get what `LearnedKernels.backward` says of their
        elements. A gradient that is not finite becomes 0 and adds nothing.

        Args:
            squared: ‖gradients[i]‖₂², float64 [L] on the device; not read where there is no gradient.
            sums: None where nobody asks for them.
            scaling: index of the gradient scaling in `adapt.kernels.learned.SCALINGS`, and `delta` its strength.
        """


def channel_kernels(device: torch.device) -> ChannelKernels:
    """The passes of the back end that `adapt.kernels.backend` chooses for this device."""
    return cast(ChannelKernels, companion("channels", device))
