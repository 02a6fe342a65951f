"""Masters that are rounded channel by channel, and the gradients of their steps and ranges."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from adapt.kernels.channels import channel_kernels
from adapt.kernels.learned_steps import SCALINGS, Row, rounded
from adapt.kernels.stream import flat
from adapt.layers.channels import Channels
from adapt.learned.format_table import FormatTable
from adapt.numerics import Format
from adapt.weights.comparison import SAMPLE, differ
from adapt.weights.masters import Masters


class LearnedMasters(Masters):
    """W and Ŵ of weights whose channels have their own steps and ranges. Rounding is to nearest in every view.

    Args:
        parameters: the parameters by name; their present values become the masters.
        channels: the channels of each.
        table: the formats of all tensors of the network, including these.

    Raises:
        ValueError: a parameter's memory has gaps or overlaps.
    """

    def __init__(self, parameters: Mapping[str, Tensor], channels: Sequence[Channels], table: FormatTable) -> None:
        super().__init__(parameters)
        self.channels, self.table = list(channels), table
        self.skipped = torch.zeros(len(self.names), dtype=torch.int64, device=self.device)
        self._nonzeros = torch.zeros(len(self.names), dtype=torch.float64, device=self.device)
        self._by_channel = channel_kernels(self.device)
        self._layouts = [
            channels.layout(weight, table.places[name].start)
            for name, weight, channels in zip(self.names, self.weights, self.channels, strict=True)
        ]

    @property
    def nonzeros(self) -> Tensor:
        """How many elements of each Ŵ were not zero at the latest `count_nonzeros`, float64 [parameters]."""
        return self._nonzeros

    @property
    def formats(self) -> dict[str, Format]:
        """The format of each parameter by name; parameters without elements are left out."""
        return {
            name: self.table.format_of(name, axis=channels.axis, groups=channels.split)
            for name, channels in zip(self.names, self.channels, strict=True)
            if self.table.numel[self.table.places[name]].any()
        }

    def backward(self, scaling: str, delta: float, *, collect: bool) -> None:
        """p ← W, and turn each parameter's gradient dL/dŴ into dL/dW in place.

        A gradient that is not finite becomes zero, counts as skipped and adds nothing to the sums.

        Args:
            scaling, delta: the gradient scaling.
            collect: whether to add the gradients of steps and ranges to the formats' sums.
        """
        gradients = self.gradients()
        squared = torch.empty(len(self.names), dtype=torch.float64, device=self.device)
        self._kernels.squared_norms_(gradients, squared)
        # A missing gradient has the norm NaN. Present ones are not checked, which would wait for the device.
        missing = [i for i, gradient in enumerate(gradients) if gradient is None]
        self.skipped += ~torch.isfinite(squared)
        if missing:
            self.skipped[missing] -= 1
        self._by_channel.back_(
            gradients,
            self.weights,
            squared,
            self.table.rows,
            self._layouts,
            self.table.sums if collect else None,
            scaling=SCALINGS.index(scaling),
            delta=delta,
        )
        if not self._alias():
            self.show("masters", rewrite=True)
            self._forget_views()

    @torch.no_grad()
    def store(self, step: int) -> None:
        """W ← p and p ← Q(W)."""
        everything = range(len(self.parameters))
        self._aliases.end(everything, updated=True)
        self._round(everything, self.parameters, stochastic=False)
        self._record_step()

    def count_nonzeros(self) -> None:
        """Count the non-zero elements of each Ŵ, which the parameters must hold."""
        self._nonzeros.copy_(torch.stack([torch.count_nonzero(p.detach()) for p in self.parameters]))

    @torch.no_grad()
    def round_parameters(self) -> None:
        self._by_channel.quantize_(self.parameters, self.parameters, self.table.rows, self._layouts)
        self._forget_views()

    def _differs(self, index: int) -> Tensor:
        every = -(-self.weights[index].numel() // SAMPLE) or 1
        held, shown = (flat(tensor)[::every] for tensor in (self.parameters[index].detach(), self.weights[index]))
        if self.views[index] != "masters":
            at = self._layouts[index].rows(torch.arange(len(held), device=self.device) * every)
            shown = rounded(shown, Row(*self.table.rows[at].unbind(1)))
        return differ(held, shown)

    def _measure(self, index: int) -> None:
        """Do nothing: `count_nonzeros` measures when it is called."""

    @torch.no_grad()
    def loss(self, i: int) -> float:
        """Return the share of a master's energy that rounding takes, ‖Ŵ − W‖₂²/‖W‖₂²; waits for the device."""
        weight = self.weights[i]
        error, energy = (values.double().square().sum() for values in (self.view_of(i, "evaluation") - weight, weight))
        return float(error / energy.clamp(min=1e-300))

    def rows(self, i: int) -> Tensor:
        """Return a master as [channels, elements of a channel]."""
        return self.channels[i].rows(self.weights[i])

    @torch.no_grad()
    def _round(self, indices: Sequence[int], outputs: Sequence[Tensor], *, stochastic: bool) -> None:
        sources, layouts = [self.weights[i] for i in indices], [self._layouts[i] for i in indices]
        self._by_channel.quantize_(sources, outputs, self.table.rows, layouts)
