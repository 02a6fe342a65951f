"""The window of each layer: the gradients since its last switch."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from adapt.distributed.sharding import sharded_like


class Windows:
    """ΣG of each layer's window and, if a policy asks for them, the gradients themselves.

    Args:
        sums: whether to keep running sums.

    Attributes:
        sums: ΣG of each layer, or None.
        gradients: the gradients of each layer's window, oldest first; empty unless `keep` is called.
    """

    def __init__(self, *, sums: bool) -> None:
        self._with_sums = sums
        self.sums: list[Tensor | None] = []
        self.gradients: list[list[Tensor]] = []

    def begin(self, weights: Iterable[Tensor]) -> None:
        """Add empty windows for layers with these weights."""
        for weight in weights:
            self.sums.append(torch.zeros_like(weight) if self._with_sums else None)
            self.gradients.append([])

    def keep(self, gradients: Sequence[Tensor | None]) -> None:
        """Add copies of the gradients."""
        for window, gradient in zip(self.gradients, gradients, strict=True):
            if gradient is not None:
                window.append(gradient.clone())

    def clear(self, indices: Iterable[int]) -> None:
        """Empty the windows of these layers."""
        for i in indices:
            self.gradients[i].clear()
            total = self.sums[i]
            if total is not None:
                total.zero_()

    def load(self, index: int, total: Tensor | None, gradients: Iterable[Tensor], like: Tensor) -> None:
        """Fill the window of a layer, whose weights are `like`, with copies of these."""
        kept = self.sums[index]
        if kept is not None and total is not None:
            kept.copy_(sharded_like(total, like))
        self.gradients[index] = [sharded_like(g, like).to(like.device, copy=True) for g in gradients]
