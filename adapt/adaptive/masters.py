"""Masters of weights in formats that a policy chooses: fixed point, block floating point, or float32."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from adapt import rounding
from adapt.adaptive.grids import Grids
from adapt.distributed.sharding import full, unequal
from adapt.kernels import Rounding, Treatment, Update
from adapt.kernels.stream import flat
from adapt.numerics import Format, LayerFormat
from adapt.rounding import Noise
from adapt.weights.masters import Masters, differ

_SAMPLE = 4096
"""How many elements of a parameter are compared with what it should hold."""


class FixedPointMasters(Masters):
    """W and Ŵ of parameters that each have one format.

    Args:
        parameters: the parameters by name; their present values become the masters.
        noise: how training rounds; evaluation rounds to nearest.
        old: earlier masters, whose tensors are taken over for parameters in both.

    Attributes:
        grids: the grids to which the parameters are rounded.
        figures: the non-zeros of Ŵ, ‖W‖₁ and ‖W‖₂² of each parameter at the latest rounding, float64
            [parameters, 3].

    Raises:
        ValueError: a parameter's memory has gaps or overlaps.
    """

    def __init__(self, parameters: Mapping[str, Tensor], noise: Noise, old: "FixedPointMasters | None" = None) -> None:
        super().__init__(parameters, old)
        self._noise = noise
        self.figures = torch.zeros(len(self.parameters), 3, dtype=torch.float64, device=self.device)
        self._offsets = np.zeros(len(self.parameters), np.int64)
        self._keys = np.zeros(len(self.parameters), np.uint64)
        self.set_formats([None] * len(self.parameters))

    @property
    def is_stochastic(self) -> bool:
        """Whether training rounds stochastically."""
        return self._noise.stochastic

    @property
    def nonzeros(self) -> Tensor:
        return self.figures[:, 0]

    @property
    def formats(self) -> dict[str, Format]:
        """The format of each parameter by name; parameters in float32 are left out."""
        pairs = zip(self.names, self.grids.precisions, strict=True)
        return {name: Format.of(precision) for name, precision in pairs if precision is not None}

    def saturated(self) -> Tensor:
        """Return the share of each master outside its format's range, float64 [parameters]; 0 in float32."""
        shares = []
        for weight, (scale, step, low, high) in zip(self.weights, self.grids.table.tolist(), strict=True):
            outside = unequal(weight.clamp(low * step, high * step), weight) if scale else torch.zeros_like(weight)
            shares.append(full(outside.sum()).double() / max(weight.numel(), 1))
        return torch.stack(shares)

    def set_formats(self, formats: Sequence[LayerFormat]) -> None:
        """Round to these formats, one per parameter, from now on; the parameters change with the next `store`."""
        self.grids = Grids(formats, self.weights)

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
        """Add G to ΣG, then measure ‖G‖₂² and ‖ΣG‖₂² of each parameter.

        A gradient that is not finite is left out of the sum. The norm of a missing gradient is NaN.

        Args:
            gradients: G of each parameter, or None.
            sums: ΣG of each parameter; None if no sums are kept.
            squared, squared_sums: the outputs, float64 [parameters].
            quantize: first round the gradients stochastically and in place to their parameters' formats. A norm that
                was not finite before the rounding stays so.
            step: the step whose random key to round them with.
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
        keys = rounding.stream_keys(self._noise.seed, step, [f"{self.names[i]}.grad" for i in active])
        grids = self.grids.of(active, tensors)
        kernels.quantize_(tensors, tensors, Rounding(grids, keys, self._offsets[active], stochastic=True))
        kernels.squared_norms_(gradients, squared)
        squared.copy_(torch.where(torch.isfinite(raw), squared, raw))
        kernels.add_(totals, gradients, squared, squared_sums)

    def restore(self, gradients: Sequence[Tensor | None], treatment: Treatment) -> None:
        """p ← W and G ← G/‖G‖ + α·sign(W) + β·W for the optimizer. A gradient that is not finite becomes zero.

        Args:
            gradients: G of each parameter, changed in place, or None.
            treatment: how the gradients are changed.
        """
        aliased = self._alias()
        self._kernels.restore_(None if aliased else self.parameters, self.weights, gradients, treatment)
        self.views = ["masters"] * len(self.parameters)
        self._forget_views()

    def restore_only(self) -> None:
        """p ← W; gradients stay as they are, except that one that is not finite becomes zero."""
        gradients, count = self.gradients(), len(self.parameters)
        squared = torch.empty(count, dtype=torch.float64, device=self.device)
        self._kernels.squared_norms_(gradients, squared)
        self.restore(gradients, Treatment(squared, np.zeros(count), np.zeros(count), normalize=False))

    def store(self, step: int) -> None:
        """W ← p and p ← Q(W) with the random key of `step`, and measure Ŵ and W, all in one pass."""
        self.grids.fit(range(len(self.parameters)), self.parameters)
        how = self._begin(step)
        if self._aliases:
            self._aliases.end(range(len(self.parameters)), updated=True)
            self._kernels.quantize_(self.weights, self.parameters, how, self.figures)
        else:
            self._kernels.store_(self.parameters, self.weights, how, self.figures)
        self._record_step()

    def descend(self, gradients: Sequence[Tensor | None], treatment: Treatment, update: Update, step: int) -> None:
        """W ← SGD(W, treated G) and p ← Q(W) with the random key of `step`, and measure Ŵ and W, all in one pass.

        For fixed point only: block floating point must look at the weights between update and rounding.

        Args:
            gradients: G of each parameter, or None; not changed.
            treatment: how G is changed for the update.
            update: the update's rates and buffers.
            step: the step whose random key to round with.
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
        self._record_step()

    @torch.no_grad()
    def round_parameters(self) -> None:
        grids = self.grids.of(range(len(self.parameters)), self.parameters)
        how = Rounding(grids, self._keys, self._offsets, stochastic=False)
        self._kernels.quantize_(self.parameters, self.parameters, how)
        self._forget_views()

    def _begin(self, step: int) -> Rounding:
        """Switch to the random key of `step`, and return how training rounds."""
        self._keys = rounding.stream_keys(self._noise.seed, step, self.names)
        return Rounding(self.grids.table, self._keys, self._offsets, self.is_stochastic)

    def _measure(self, index: int) -> None:
        weight, figures = self.weights[index], self.figures.new_empty(1, 3)
        self.grids.fit([index], [weight])
        how = self._rounding([index], stochastic=self.is_stochastic)
        self._kernels.quantize_([weight], [torch.empty_like(weight)], how, figures)
        self.figures[index] = figures[0]

    def _differs(self, index: int) -> Tensor:
        held = flat(self.parameters[index].detach())[:_SAMPLE]
        shown = flat(self.weights[index])[:_SAMPLE]
        if self.views[index] != "masters":
            weight, shown = shown, torch.empty_like(shown)
            how = self._rounding([index], stochastic=self.is_stochastic and self.views[index] == "training")
            self._kernels.quantize_([weight], [shown], how)
        return differ(held, shown)

    def _rounding(self, indices: Sequence[int], *, stochastic: bool) -> Rounding:
        """Return how the masters of the parameters `indices` are rounded now."""
        at = np.asarray(indices, np.intp)
        return Rounding(self.grids.table[at], self._keys[at], self._offsets[at], stochastic)

    def _round(self, indices: Sequence[int], outputs: Sequence[Tensor], *, stochastic: bool) -> None:
        how = self._rounding(indices, stochastic=stochastic)
        self._kernels.quantize_([self.weights[i] for i in indices], outputs, how)
