"""Float32 master weights, and the quantised copies that the parameters show."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from adapt import rounding
from adapt.distributed.sharding import OnPieces, is_sharded, local, placed
from adapt.kernels import Kernels, Rounding, Treatment
from adapt.kernels.stream import is_dense
from adapt.switching.policy import Format
from adapt.weights.descent import Update
from adapt.weights.grids import Grids
from adapt.weights.lending import Lending

View = Literal["training", "evaluation", "masters"]
"""What the parameters hold: Ŵ as training rounds it, Ŵ rounded to nearest, or W itself."""


class Masters:
    """W and Ŵ of some parameters, all of one device.

    Ŵ is written in place into the parameter, which stays the leaf of autograd: its gradient is dL/dŴ and the
    straight-through rule costs nothing. Ŵ is a function of W, the format and the key of the step that wrote it,
    so either copy of it can be made again at any time, bit for bit.

    Args:
        parameters: what to keep masters of, by name; their values now are the masters.
        seed: seed of the rounding stream.
        stochastic: whether training rounds stochastically; evaluation rounds to nearest.
        old: masters to take over where a parameter is among theirs.

    Attributes:
        grids: what each parameter is rounded to.
        figures: the non-zeros of Ŵ, ‖W‖₁ and ‖W‖₂² of each parameter as of the latest rounding, float64
            [parameters, 3].
        lends: whether `restore` may lend the parameters the masters themselves, until `store`: for an optimizer that
            updates in place what it finds in a parameter.

    Raises:
        ValueError: a parameter's memory has gaps or overlaps.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        *,
        seed: int,
        stochastic: bool,
        old: "Masters | None" = None,
    ) -> None:
        self.names = tuple(parameters)
        self.parameters = list(parameters.values())
        for name, parameter in parameters.items():
            if not is_dense(parameter):
                raise ValueError(
                    f"{name} is a view with gaps or overlaps in memory: make the parameter contiguous first"
                )
        self.seed, self.stochastic = seed, stochastic
        kept = {} if old is None else dict(zip(map(id, old.parameters), old.weights, strict=True))
        self.weights: list[Tensor] = [kept[id(p)] if id(p) in kept else p.detach().clone() for p in self.parameters]
        self.device = self.parameters[0].device
        self.sharded = any(is_sharded(parameter) for parameter in self.parameters)
        kernels = rounding.backend(self.device)
        self._kernels: Kernels = OnPieces(kernels) if self.sharded else kernels
        self.lends = False
        self._lending = Lending(self.parameters, self.weights)
        self.numel = np.array([p.numel() for p in self.parameters], np.int64)
        self.figures = torch.zeros(len(self.parameters), 3, dtype=torch.float64, device=self.device)
        self.views: list[View] = ["masters"] * len(self.parameters)
        self._offsets = np.zeros(len(self.parameters), np.int64)
        self.use([None] * len(self.parameters))
        self._keys = np.zeros(len(self.parameters), np.uint64)

    @property
    def nonzeros(self) -> Tensor:
        """How many elements of each Ŵ are not zero, float64 [parameters]."""
        return self.figures[:, 0]

    def use(self, formats: Sequence[Format]) -> None:
        """Round to these formats from now on, one for each parameter; the parameters change with the next `store`."""
        self.grids = Grids(formats, self.weights)

    def gradients(self) -> list[Tensor | None]:
        """Each parameter's gradient, laid out in memory as the parameter is.

        Raises:
            RuntimeError: a gradient is sparse, or a parameter is no longer where its master is.
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

    def accumulate(
        self,
        gradients: Sequence[Tensor | None],
        sums: Sequence[Tensor | None] | None,
        squared: Tensor,
        squared_sums: Tensor,
        *,
        quantize: bool = False,
        step: int = 0,
    ) -> None:
        """‖G‖₂² and ‖ΣG‖₂² of each parameter into float64 [parameters], after ΣG += G.

        A gradient that is not finite is left out of the sum; where there is none its norm becomes NaN.

        Args:
            gradients: G of each parameter; None where there is none.
            sums: ΣG of each parameter, or of none.
            squared, squared_sums: where the norms go.
            quantize: round the gradients first, stochastically and in place, in their parameters' formats. The norm of
                one that was not finite stays so.
            step: whose key to round them with.
        """
        totals = [None] * len(self.parameters) if sums is None else sums
        kernels = self._kernels
        if not quantize:
            kernels.accumulate_(totals, gradients, squared, squared_sums)
            return
        kernels.squared_norms_(gradients, squared)
        raw = squared.clone()
        active = [i for i, gradient in enumerate(gradients) if gradient is not None]
        tensors = [gradient for gradient in gradients if gradient is not None]
        keys = rounding.stream_keys(self.seed, step, [f"{self.names[i]}.grad" for i in active])
        grids = self.grids.of(active, tensors)
        kernels.quantize_(tensors, tensors, Rounding(grids, keys, self._offsets[active], stochastic=True))
        kernels.squared_norms_(gradients, squared)
        squared.copy_(torch.where(torch.isfinite(raw), squared, raw))
        kernels.add_(totals, gradients, squared, squared_sums)

    def restore(self, gradients: Sequence[Tensor | None], treatment: Treatment) -> None:
        """p ← W, and G ← G/‖G‖ + α·sign(W) + β·W: what an optimizer then finds. One that is not finite becomes zero.

        Args:
            gradients: G of each parameter, changed in place; None where there is none.
            treatment: what becomes of them.
        """
        parameters = None if self._can_lend else self.parameters
        self._kernels.restore_(parameters, self.weights, gradients, treatment)
        if self._can_lend:
            self._lending.lend()
        self.views = ["masters"] * len(self.parameters)

    @property
    def _can_lend(self) -> bool:
        return self.lends and self._lending.is_possible

    def restore_only(self) -> None:
        """p ← W; a gradient stays as it is, but one that is not finite is replaced by zero."""
        gradients, count = self.gradients(), len(self.parameters)
        squared = torch.empty(count, dtype=torch.float64, device=self.device)
        self._kernels.squared_norms_(gradients, squared)
        self.restore(gradients, Treatment(squared, np.zeros(count), np.zeros(count), normalize=False))

    def store(self, step: int) -> None:
        """W ← p, p ← Q(W) with the key of `step`, and measure Ŵ and W, in one pass."""
        self.grids.follow(range(len(self.parameters)), self.parameters)
        how = self._begin(step)
        if self._lending:
            self._lending.take_back(range(len(self.parameters)), updated=True)
            self._kernels.quantize_(self.weights, self.parameters, how, self.figures)
        else:
            self._kernels.store_(self.parameters, self.weights, how, self.figures)
        self.views = ["training"] * len(self.parameters)

    def descend(self, gradients: Sequence[Tensor | None], treatment: Treatment, update: Update, step: int) -> None:
        """W ← SGD(W, treated G), p ← Q(W) with the key of `step`, and measure Ŵ and W, in one pass.

        For fixed point alone: block floating point would have to look at the weights between update and rounding.

        Args:
            gradients: G of each parameter, which stays as it is; None where there is none.
            treatment: what becomes of it before the update.
            update: the update's rates and buffers.
        """
        self._kernels.descend_(
            self.parameters,
            self.weights,
            gradients,
            update.buffers,
            treatment,
            update.rates,
            self._begin(step),
            self.figures,
        )
        self.views = ["training"] * len(self.parameters)

    def _begin(self, step: int) -> Rounding:
        """How training rounds, with the key of `step` from now on."""
        self._keys = rounding.stream_keys(self.seed, step, self.names)
        return Rounding(self.grids.table, self._keys, self._offsets, self.stochastic)

    def _rounding(self, indices: Sequence[int], *, stochastic: bool) -> Rounding:
        """How the masters of the parameters `indices` are rounded now."""
        at = np.asarray(indices, np.intp)
        return Rounding(self.grids.table[at], self._keys[at], self._offsets[at], stochastic)

    @torch.no_grad()
    def show(self, view: View, indices: Sequence[int] | None = None, *, anew: bool = False) -> None:
        """Let the parameters `indices`, or all, hold another view of their masters.

        Only what changes is written, unless `anew` says that the parameters do not hold what they should.

        Raises:
            RuntimeError: a parameter is no longer where its master is.
        """
        chosen = [i for i in (range(len(self.views)) if indices is None else indices) if anew or self.views[i] != view]
        if not chosen:
            return
        # An update may have been interrupted.
        self._lending.take_back(chosen)
        self._require_unmoved(chosen)
        parameters = [self.parameters[i] for i in chosen]
        if view == "masters":
            torch._foreach_copy_([local(p) for p in parameters], [local(self.weights[i]) for i in chosen])
        elif anew or self.stochastic or any(self.views[i] == "masters" for i in chosen):
            self._round(chosen, parameters, stochastic=self.stochastic and view == "training")
        for i in chosen:
            self.views[i] = view

    @torch.no_grad()
    def hand_over(self, view: View) -> None:
        """Leave this view of the masters to the parameters, wherever they are by now."""
        self._lending.take_back(range(len(self.parameters)))
        for index, parameter in enumerate(self.parameters):
            parameter.copy_(self.seen(index, view))
            self.views[index] = view

    def round_parameters(self) -> None:
        """Round to nearest, in place, what the parameters hold now."""
        grids = self.grids.of(range(len(self.parameters)), self.parameters)
        how = Rounding(grids, self._keys, self._offsets, stochastic=False)
        self._kernels.quantize_(self.parameters, self.parameters, how)

    def seen(self, index: int, view: View) -> Tensor:
        """A master as this view of it shows it: a new tensor, or the master itself."""
        if view == "masters":
            return self.weights[index]
        output = torch.empty_like(self.weights[index])
        self._round([index], [output], stochastic=self.stochastic and view == "training")
        return output

    def accept(self, index: int) -> None:
        """Make values that someone wrote into a parameter its master, unless they are a view of the master."""
        value, views = self.parameters[index].detach(), get_args(View)
        if not any(torch.equal(value, self.seen(index, view)) for view in views):
            self.weights[index].copy_(value)
            self.grids.follow([index], [self.weights[index]])
            self._measure(index)
        self.show(self.views[index], [index], anew=True)

    def _measure(self, index: int) -> None:
        """Bring a parameter's figures up to date with its master."""
        weight, figures = self.weights[index], self.figures.new_empty(1, 3)
        how = self._rounding([index], stochastic=self.stochastic)
        self._kernels.quantize_([weight], [torch.empty_like(weight)], how, figures)
        self.figures[index] = figures[0]

    def load(self, index: int, weights: Mapping[str, Tensor]) -> None:
        """Take over a parameter's master by its name; the parameter follows with `store`."""
        weight = self.weights[index]
        weight.copy_(placed(weights[self.names[index]], weight))

    def _require_unmoved(self, indices: Iterable[int]) -> None:
        for i in indices:
            now, then = self.parameters[i], self.weights[i]
            if now.device != then.device or now.dtype != then.dtype or now.stride() != then.stride():
                raise RuntimeError(
                    f"{self.names[i]} was moved after its controller was attached, from {then.dtype} on {then.device} "
                    f"with strides {then.stride()} to {now.dtype} on {now.device} with strides {now.stride()}: "
                    "bring the model to its device, type and memory format first, then make the optimizer and attach"
                )

    def _round(self, indices: Sequence[int], outputs: Sequence[Tensor], *, stochastic: bool) -> None:
        how = self._rounding(indices, stochastic=stochastic)
        self._kernels.quantize_([self.weights[i] for i in indices], outputs, how)
