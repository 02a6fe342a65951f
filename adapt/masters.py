"""Float32 master weights, and the quantised copies that the parameters show."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapt import rounding
from adapt.grids import Grids
from adapt.kernels import Kernels
from adapt.kernels.stream import is_dense
from adapt.lending import Lending
from adapt.sharding import OnPieces, is_sharded, local, placed
from adapt.switching.policy import Format

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
        self.lends = False
        self._lending = Lending(self.parameters, self.weights)
        self.numel = np.array([p.numel() for p in self.parameters], np.int64)
        self.nonzeros = torch.zeros(len(self.parameters), dtype=torch.float64, device=self.device)
        self.views: list[View] = ["masters"] * len(self.parameters)
        self._offsets = np.zeros(len(self.parameters), np.int64)
        self.use([None] * len(self.parameters))
        self._keys = np.zeros(len(self.parameters), np.uint64)

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
                gradient = gradient.detach()
            gradients.append(gradient)
        return gradients

    def square(self, gradients: Sequence[Tensor | None], out: Tensor, *, quantize: bool = False, step: int = 0) -> None:
        """‖G‖₂² into `out`, float64 [parameters], left as it is where there is no gradient.

        With `quantize`, the gradients are first rounded stochastically, in place, in their parameters' formats; the
        norm of one that was not finite stays so.
        """
        active = [i for i, gradient in enumerate(gradients) if gradient is not None]
        if not active:
            return
        tensors = [gradient for gradient in gradients if gradient is not None]
        squared = out if len(active) == len(out) else torch.empty(len(active), dtype=out.dtype, device=out.device)
        kernels = self._kernels()
        kernels.squared_norms_(tensors, squared)
        if quantize:
            raw = squared.clone()
            keys = rounding.stream_keys(self.seed, step, [f"{self.names[i]}.grad" for i in active])
            grids = self.grids.of(active, tensors)
            kernels.quantize_(tensors, tensors, grids, keys, self._offsets[active], stochastic=True)
            kernels.squared_norms_(tensors, squared)
            squared.copy_(torch.where(torch.isfinite(raw), squared, raw))
        if squared is not out:
            out[active] = squared

    def restore(
        self,
        gradients: Sequence[Tensor | None],
        squared: Tensor,
        statistics: Tensor,
        *,
        l1: NDArray[np.float64],
        l2: float,
        normalize: bool,
        sums: Sequence[Tensor | None] | None = None,
    ) -> None:
        """p ← W, ΣG += G and G ← G/‖G‖ + α·sign(W) + β·W, in one pass.

        A gradient that is not finite is left out of the sum and replaced by zero.

        Args:
            gradients: G of each parameter, changed in place; None where there is none.
            squared: ‖G‖₂² of each, float64 [parameters]; anything where there is no gradient.
            statistics: float64 [parameters, 3], filled with ‖ΣG‖₂², ‖W‖₁ and ‖W‖₂².
            l1: α for each parameter.
            l2: β.
            normalize: whether to divide by ‖G‖.
            sums: ΣG of each parameter, or None; ‖ΣG‖ comes out as 0 without.
        """
        lend = self.lends and self._lending.is_possible
        self._kernels().restore_(
            None if lend else self.parameters,
            self.weights,
            gradients,
            [None] * len(self.parameters) if sums is None else sums,
            squared,
            l1,
            np.full(len(self.parameters), l2),
            statistics,
            normalize=normalize,
        )
        if lend:
            self._lending.lend()
        self.views = ["masters"] * len(self.parameters)

    def restore_only(self) -> None:
        """p ← W; a gradient stays as it is, but one that is not finite is replaced by zero."""
        gradients, count = self.gradients(), len(self.parameters)
        squared = torch.zeros(count, dtype=torch.float64, device=self.device)
        self.square(gradients, squared)
        statistics = torch.empty(count, 3, dtype=torch.float64, device=self.device)
        self.restore(gradients, squared, statistics, l1=np.zeros(count), l2=0.0, normalize=False)

    def store(self, step: int) -> None:
        """W ← p, p ← Q(W) with the key of `step`, and count the non-zeros of Ŵ, in one pass."""
        self._keys = rounding.stream_keys(self.seed, step, self.names)
        self.grids.follow(range(len(self.parameters)), self.parameters)
        tables = self.grids.table, self._keys, self._offsets, self.nonzeros
        if self._lending:
            self._lending.take_back(range(len(self.parameters)), updated=True)
            self._kernels().quantize_(self.weights, self.parameters, *tables, stochastic=self.stochastic)
        else:
            self._kernels().store_(self.parameters, self.weights, *tables, stochastic=self.stochastic)
        self.views = ["training"] * len(self.parameters)

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
        self._kernels().quantize_(self.parameters, self.parameters, grids, self._keys, self._offsets, stochastic=False)

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
        self.show(self.views[index], [index], anew=True)

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
        at = np.asarray(indices)
        self._kernels().quantize_(
            [self.weights[i] for i in indices],
            outputs,
            self.grids.table[at],
            self._keys[at],
            self._offsets[at],
            stochastic=stochastic,
        )

    def _kernels(self) -> Kernels:
        kernels = rounding.backend(self.device)
        return OnPieces(kernels) if self.sharded else kernels
