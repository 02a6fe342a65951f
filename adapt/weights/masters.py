"""Float32 master weights, and the quantised copies that the parameters show."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from adapt import rounding
from adapt.distributed.sharding import OnPieces, is_sharded, local, placed
from adapt.kernels import Kernels
from adapt.kernels.stream import is_dense
from adapt.layers.view import View
from adapt.weights.aliasing import Aliases


class Masters(ABC):
    """W and Ŵ of some parameters, all on one device.

    Ŵ is written in place into the parameter, which stays autograd's leaf: its gradient is dL/dŴ, so the
    straight-through rule costs nothing. Ŵ is a function of W, the format and, with stochastic rounding, the key of the
    step that wrote it, so every view can be made again at any time, bit for bit.

    Args:
        parameters: the parameters by name; their present values become the masters.
        old: masters whose tensors to take over for the parameters that they already keep.

    Attributes:
        names, parameters, weights: the name, the parameter and the master W of each.
        numel: elements of each, int64 [parameters].
        views: what each parameter holds now.
        sharded: whether a parameter is spread over several processes.
        may_alias: whether an optimizer may find the masters themselves in the parameters during its update, because it
            updates them in place.

    Raises:
        ValueError: a parameter's memory has gaps or overlaps.
    """

    def __init__(self, parameters: Mapping[str, Tensor], old: "Masters | None" = None) -> None:
        self.names = tuple(parameters)
        self.parameters = list(parameters.values())
        for name, parameter in parameters.items():
            if not is_dense(parameter):
                raise ValueError(
                    f"{name} is a view with gaps or overlaps in memory: make the parameter contiguous first"
                )
        kept = {} if old is None else dict(zip(map(id, old.parameters), old.weights, strict=True))
        self.weights: list[Tensor] = [kept[id(p)] if id(p) in kept else p.detach().clone() for p in self.parameters]
        self.device = self.parameters[0].device
        self.sharded = any(is_sharded(parameter) for parameter in self.parameters)
        kernels = rounding.backend(self.device)
        self._kernels: Kernels = OnPieces(kernels) if self.sharded else kernels
        self.may_alias = False
        self._aliases = Aliases(self.parameters, self.weights)
        self.numel = np.array([p.numel() for p in self.parameters], np.int64)
        self.views: list[View] = ["masters"] * len(self.parameters)

    @property
    def is_stochastic(self) -> bool:
        """Whether training and evaluation see different roundings of the same master."""
        return False

    @property
    @abstractmethod
    def nonzeros(self) -> Tensor:
        """How many elements of each Ŵ are not zero, float64 [parameters]."""

    @abstractmethod
    def store(self, step: int) -> None:
        """W ← p, p ← Q(W) with the random key of `step`."""

    @abstractmethod
    def round_parameters(self) -> None:
        """Round what the parameters hold now to nearest, in place."""

    @abstractmethod
    def _round(self, indices: Sequence[int], outputs: Sequence[Tensor], *, stochastic: bool) -> None:
        """outputs ← Q(W) of the parameters `indices`, with the present keys if stochastic."""

    @abstractmethod
    def _measure(self, index: int) -> None:
        """Bring what is known of a master up to date after it was written."""

    def gradients(self) -> list[Tensor | None]:
        """Return each parameter's gradient, laid out in memory as the parameter is.

        Raises:
            RuntimeError: a gradient is sparse, or a parameter was moved away from its master.
        """
        self._require_unmoved(range(len(self.parameters)))
        gradients: list[Tensor | None] = []
        for name, parameter in zip(self.names, self.parameters, strict=True):
            gradient = parameter.grad
            if gradient is not None:
                if gradient.is_sparse:
                    raise RuntimeError(f"{name} has a sparse gradient: make its embedding with sparse=False")
                if gradient.stride() != parameter.stride():
                    gradient = parameter.grad = torch.empty_like(parameter).copy_(gradient)
                if gradient.requires_grad:
                    gradient = gradient.detach()
            gradients.append(gradient)
        return gradients

    @torch.no_grad()
    def show(self, view: View, indices: Sequence[int] | None = None, *, anew: bool = False) -> None:
        """Let the parameters `indices`, or all, hold another view of their masters.

        Only what changes is written, unless `anew` says that the parameters may hold anything.

        Raises:
            RuntimeError: a parameter was moved away from its master.
        """
        chosen = [i for i in (range(len(self.views)) if indices is None else indices) if anew or self.views[i] != view]
        if not chosen:
            return
        # An update may have been interrupted.
        self._aliases.end(chosen)
        self._require_unmoved(chosen)
        parameters = [self.parameters[i] for i in chosen]
        if view == "masters":
            torch._foreach_copy_([local(p) for p in parameters], [local(self.weights[i]) for i in chosen])
        elif anew or self.is_stochastic or any(self.views[i] == "masters" for i in chosen):
            self._round(chosen, parameters, stochastic=self.is_stochastic and view == "training")
        for i in chosen:
            self.views[i] = view

    @torch.no_grad()
    def hand_over(self, view: View) -> None:
        """Leave this view of the masters to the parameters, wherever they are by now."""
        self._aliases.end(range(len(self.parameters)))
        for index, parameter in enumerate(self.parameters):
            parameter.copy_(self.seen(index, view))
            self.views[index] = view

    def seen(self, index: int, view: View) -> Tensor:
        """Return a master as `view` shows it: a new tensor, or the master itself."""
        if view == "masters":
            return self.weights[index]
        output = torch.empty_like(self.weights[index])
        self._round([index], [output], stochastic=self.is_stochastic and view == "training")
        return output

    def accept(self, index: int) -> None:
        """Make values that were loaded into a parameter its master, unless they are a view of the master."""
        value, views = self.parameters[index].detach(), get_args(View)
        if not any(torch.equal(value, self.seen(index, view)) for view in views):
            self.weights[index].copy_(value)
            self._measure(index)
        self.show(self.views[index], [index], anew=True)

    def load(self, index: int, weights: Mapping[str, Tensor]) -> None:
        """Take over a parameter's master by its name; the parameter follows with `store`."""
        weight = self.weights[index]
        weight.copy_(placed(weights[self.names[index]], weight))

    def _alias(self) -> bool:
        """Let the parameters be the masters until `store`, if the optimizer and the parameters allow it."""
        if not (self.may_alias and self._aliases.are_possible):
            return False
        self._aliases.begin()
        self.views = ["masters"] * len(self.parameters)
        return True

    def _require_unmoved(self, indices: Iterable[int]) -> None:
        for i in indices:
            now, then = self.parameters[i], self.weights[i]
            if now.device != then.device or now.dtype != then.dtype or now.stride() != then.stride():
                raise RuntimeError(
                    f"{self.names[i]} was moved after its controller was attached, from {then.dtype} on {then.device} "
                    f"with strides {then.stride()} to {now.dtype} on {now.device} with strides {now.stride()}: "
                    "bring the model to its device, type and memory format first, then make the optimizer and attach"
                )
