"""Masters of weights in formats that a policy chooses: fixed point, block floating point, or float32."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adapt import rounding
from adapt.adaptive.channelwise import Shift, round_by_channel, shift
from adapt.adaptive.grids import Grids
from adapt.distributed.sharding import FullTensors, full, local, unequal
from adapt.kernels import Rounding, Treatment, Update
from adapt.kernels.stream import flat
from adapt.layers.channels import ByChannel, Channels, channels_by_layer
from adapt.numerics import ChannelPrecision, Format, LayerFormat
from adapt.rounding import Noise
from adapt.switching.policy import Policy
from adapt.weights.comparison import SAMPLE, differ
from adapt.weights.masters import Masters


class FixedPointMasters(Masters):
    """W and Ŵ of parameters that each have one format, or one word length and a fraction length for every channel.

    Args:
        parameters: the parameters by name; their present values become the masters.
        noise: how training rounds; evaluation rounds to nearest.
        old: earlier masters, whose tensors are taken over for parameters in both.
        channels: where the output channels of each parameter lie; None if no format will have channels.

    Attributes:
        grids: the grids to which the parameters are rounded.
        figures: the non-zeros of Ŵ, ‖W‖₁ and ‖W‖₂² of each parameter at the latest rounding, float64
            [parameters, 3].

    Raises:
        ValueError: a parameter's memory has gaps or overlaps.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        noise: Noise,
        old: "FixedPointMasters | None" = None,
        channels: Sequence[Channels] | None = None,
    ) -> None:
        super().__init__(parameters, old)
        self._channels = channels or channels_by_layer(parameters, None, per_channel=False)
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
        rows = zip(self.names, self.grids.precisions, self._channels, strict=True)
        return {
            name: Format.of(precision, channels.axis or 0, channels.split)
            for name, precision, channels in rows
            if precision is not None
        }

    def shown_to(self, policy: Policy[Any], tensors: Sequence[Any] | None = None) -> Sequence[Tensor]:
        """Return whole weights, or other tensors laid out like them, on access, as a policy wants to see them."""
        whole = FullTensors(self.weights if tensors is None else tensors)
        return ByChannel(whole, self._channels) if getattr(policy, "channels", False) else whole

    def check_formats(self, formats: Sequence[LayerFormat]) -> None:
        """Check that formats with channels have one fraction length for each channel of their parameter.

        Raises:
            ValueError: one does not.
        """
        for name, channels, form in zip(self.names, self._channels, formats, strict=True):
            if isinstance(form, ChannelPrecision) and len(form.fraction_lengths) != channels.count:
                raise ValueError(
                    f"{name} has {channels.count} output channels, but its format is {form}: attach with the module "
                    "whose formats these are"
                )

    def check_table(self, table: Mapping[str, object]) -> None:
        """Check that the channels of a table's formats lie where those of the parameters do.

        Raises:
            ValueError: some do not, as if the table is that of a module, and the parameters came without it.
        """
        for name, channels in zip(self.names, self._channels, strict=True):
            form, place = table.get(name), (channels.axis, channels.split)
            if isinstance(form, Format) and form.axis is not None and (form.axis, form.groups) != place:
                raise ValueError(
                    f"the channels of {name} lie along dimension {form.axis} in its format, but here along dimension "
                    f"{channels.axis}: attach with the module whose formats these are"
                )

    def saturated(self) -> Tensor:
        """Return the share of each master outside its format's range, float64 [parameters]; 0 in float32."""
        shares = []
        rows = zip(self.weights, self.grids.table.tolist(), self._shifts, strict=True)
        for weight, (scale, step, low, high), by_channel in rows:
            if by_channel is not None:
                weight = weight.clone()
                local(weight).mul_(by_channel.up)
            outside = unequal(weight.clamp(low * step, high * step), weight) if scale else torch.zeros_like(weight)
            shares.append(full(outside.sum()).double() / max(weight.numel(), 1))
        return torch.stack(shares)

    def set_formats(self, formats: Sequence[LayerFormat]) -> None:
        """Round to these formats, one per parameter, from now on; the parameters change with the next `store`."""
        self.check_formats(formats)
        self.grids = Grids(formats, self.weights)
        self._shifts: list[Shift | None] = [
            shift(form, channels, weight) if isinstance(form, ChannelPrecision) else None
            for form, channels, weight in zip(formats, self._channels, self.weights, strict=True)
        ]

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
        how = Rounding(self.grids.of(active, tensors), keys, self._offsets[active], stochastic=True)
        self._quantize(active, tensors, tensors, how)
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
        how, parameters, weights = self._begin(step), self.parameters, self.weights
        everything = range(len(parameters))
        if self._aliases:
            self._aliases.end(everything, updated=True)
            self._quantize(everything, weights, parameters, how, self.figures)
        else:
            run = partial(self._kernels.store_, parameters, weights)
            round_by_channel(run, parameters, how, self._shifts, self._kernels, self.figures)
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
        run = partial(
            self._kernels.descend_,
            self.parameters,
            self.weights,
            gradients,
            update.buffers,
            treatment,
            update.rates,
        )
        round_by_channel(run, self.parameters, self._begin(step), self._shifts, self._kernels, self.figures)
        self._record_step()

    @torch.no_grad()
    def round_parameters(self) -> None:
        everything = range(len(self.parameters))
        how = Rounding(self.grids.of(everything, self.parameters), self._keys, self._offsets, stochastic=False)
        self._quantize(everything, self.parameters, self.parameters, how)
        self._forget_views()

    def _begin(self, step: int) -> Rounding:
        """Switch to the random key of `step`, and return how training rounds."""
        self._keys = rounding.stream_keys(self._noise.seed, step, self.names)
        return Rounding(self.grids.table, self._keys, self._offsets, self.is_stochastic)

    def _measure(self, index: int) -> None:
        weight, figures = self.weights[index], self.figures.new_empty(1, 3)
        self.grids.fit([index], [weight])
        how = self._rounding([index], stochastic=self.is_stochastic)
        self._quantize([index], [weight], [torch.empty_like(weight)], how, figures)
        self.figures[index] = figures[0]

    def _differs(self, index: int) -> Tensor:
        if self._shifts[index] is not None:
            return super()._differs(index)
        held = flat(self.parameters[index].detach())[:SAMPLE]
        shown = flat(self.weights[index])[:SAMPLE]
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
        self._quantize(indices, [self.weights[i] for i in indices], outputs, how)

    def _quantize(
        self,
        indices: Sequence[int],
        sources: Sequence[Tensor],
        outputs: Sequence[Tensor],
        how: Rounding,
        figures: Tensor | None = None,
    ) -> None:
        """outputs ← Q(sources) in the formats of the parameters `indices`, and the figures unless they are None."""
        run = partial(self._kernels.quantize_, sources, outputs)
        round_by_channel(run, outputs, how, [self._shifts[i] for i in indices], self._kernels, figures)
