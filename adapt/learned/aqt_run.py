"""A run of AQT: word lengths are given, and ranges are the largest magnitudes of weights and activations."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adapt import user_warnings
from adapt.distributed import ranks
from adapt.engine.fused_sgd import TakeOver
from adapt.learned import initial_formats
from adapt.learned.activations import InputQuantizers, SitePeaks
from adapt.learned.aqt import LARGEST, SMALLEST, moving_average, row
from adapt.learned.format_table import FormatTable
from adapt.learned.masters import LearnedMasters
from adapt.learned.options import MaximumRanges
from adapt.learned.run import ROW_INTERVAL, LearnedRun
from adapt.trace.widths import Widths


class MaximumTable(FormatTable):
    """Formats of given word lengths, whose steps follow from their ranges: see `adapt.learned.aqt.step`."""

    def use_bits(self, bits: NDArray[np.int64]) -> None:
        """Use these word lengths, [F]."""
        self.bits = bits
        self._derive()

    @torch.no_grad()
    def set(self, step: Tensor, maximum: Tensor) -> None:
        """Use these ranges, [F], and the steps that follow from them; `step` is ignored."""
        self.maximum.copy_(maximum.clamp(SMALLEST, LARGEST))
        self._derive()

    def _derive(self) -> None:
        bits = torch.from_numpy(self.bits).to(self.device)
        found = row(self.maximum, bits, self.signed)
        self.step.copy_(found.step)
        # Not as a write that autograd counts: a pass between forward and backward writes the rows of the weights again,
        # and a compiled backward pass would refuse the table, although the rows of its activations have stayed.
        rows = self.rows.data
        rows.copy_(torch.stack(list(found), dim=1))
        rows[torch.from_numpy(self.numel == 0).to(self.device), 0] = 0


class MaximumMasters(LearnedMasters):
    """Masters whose channels are rounded within the ranges of their present values."""

    def _round(self, indices: Sequence[int], outputs: Sequence[Tensor], *, stochastic: bool) -> None:
        """Round with AQT 3.2's ranges: max|w| of each channel's present weights."""
        maximum = self.table.maximum.clone()
        for i in indices:
            weight, channels = self.weights[i], self.channels[i]
            if weight.numel():
                largest = channels.view(weight).abs().amax(channels.summed)
                maximum[self.table.places[self.names[i]]] = largest.flatten()
        self.table.set(self.table.step, maximum)
        super()._round(indices, outputs, stochastic=stochastic)


class InputRanges:
    """Statistics of the inputs of each site while they are still float32.

    Attributes:
        peaks: the largest −x and the largest x since the last step, float32 [sites, 2]; −∞ if there was no input.
        average: the moving average of max|x|, float32 [sites].
        count: the number of steps in the average, int64 [sites].
        negative: whether a value below zero was observed, bool [sites].
        elements: the elements per sample of the largest input, int64 [sites].
    """

    def __init__(self, sites: int, device: torch.device) -> None:
        self.peaks = torch.full((sites, 2), -torch.inf, device=device)
        self.average = torch.zeros(sites, device=device)
        self.count = torch.zeros(sites, dtype=torch.int64, device=device)
        self.negative = torch.zeros(sites, dtype=torch.bool, device=device)
        self.elements = torch.zeros(sites, dtype=torch.int64)

    @torch.no_grad()
    def end_step(self, peaks: Sequence[SitePeaks], decay: float) -> None:
        """Add the step's peaks over all processes to the averages, leaving out those that are not finite."""
        ranks.maximum_(self.peaks)
        largest = self.peaks.amax(1)
        seen = largest.isfinite()
        moved = torch.where(self.count > 0, moving_average(self.average, largest, decay), largest)
        self.average.copy_(torch.where(seen, moved, self.average))
        self.count += seen
        self.negative |= seen & (self.peaks[:, 0] > 0)
        self.peaks.fill_(-torch.inf)
        self.elements.copy_(torch.maximum(self.elements, torch.tensor([one.elements for one in peaks])))

    def tensors(self) -> dict[str, Tensor]:
        """Return the state to save, by name."""
        return {f"observed_{name}": value for name, value in vars(self).items()}


class AqtRun(LearnedRun):
    """Masters and formats of a run of AQT. Inputs stay float32 until their ranges are `frozen`.

    Args:
        plan: the options of `adapt.learned.attach_aqt`.
        choice, layers, module: as in `LearnedRun`.

    Raises:
        NotImplementedError: a weight is sharded over several processes.
        ValueError: there is no layer whose activations could be quantised.
    """

    plan: MaximumRanges
    table: MaximumTable
    _peaks: Sequence[SitePeaks] = ()

    def _prepare(
        self, layers: Mapping[str, Tensor], module: nn.Module
    ) -> tuple[LearnedMasters, FormatTable, InputQuantizers | None]:
        prepared = initial_formats.prepare(
            self.plan, layers, module, self.pin, table=MaximumTable, masters=MaximumMasters
        )
        _, table, _ = prepared
        self.input_ranges = InputRanges(len(table.numel) - table.weights, table.device)
        return prepared

    def _begin_weights(self) -> None:
        """Do nothing: ranges are computed whenever weights are rounded."""

    def _begin(self) -> None:
        """Give every weight and input its word length, clipped to the bounds of `layer_bits`."""
        plan, table = self.plan, self.table
        first, last = self.layers.names[0], self.layers.names[-1]
        bits = np.where(table.is_weight, plan.weight_bits, plan.activation_bits or plan.weight_bits)
        # `first_bits` comes last, so it wins in a network of one layer.
        for name, width in ((last, plan.last_bits), (first, plan.first_bits)):
            for tensor in {name, f"{name}.input"} & set(table.places):
                bits[table.places[tensor]] = width
        table.use_bits(np.clip(bits, table.lowest, table.highest).astype(np.int64))
        self.widths = Widths(table.names, table.channels, table.numel)
        self.log.begin()
        self._use_inputs()

    def _use_inputs(self) -> None:
        """Observe the inputs, or round them once their ranges are frozen."""
        if self.inputs is None:
            return
        if self.frozen:
            self.inputs.quantize(self.table, self.plan.activation_scaling, self.plan.delta)
        else:
            self._peaks = self.inputs.record_peaks(self.input_ranges.peaks)

    def before_update(self, take_over: TakeOver | None) -> bool:
        """p ← W and one step of calibration. Gradients pass straight through: no weight lies outside its range."""
        plan, table = self.plan, self.table
        self.losses.forget()
        self.layers.backward(plan.weight_scaling, plan.delta, collect=False)
        # Backward fills the sums, but AQT learns nothing from them.
        table.sums.zero_()
        self.step += 1
        self._row_is_due = self.step == 1 or self.step % ROW_INTERVAL == 0
        if self.inputs is not None and not self.frozen:
            self.input_ranges.end_step(self._peaks, plan.decay)
            if self.step >= plan.calibration:
                self._freeze(self.inputs.names)
        return False

    @torch.no_grad()
    def _freeze(self, sites: Sequence[str]) -> None:
        """Fix the ranges of activations at their moving averages, and round activations from now on (AQT 3.2)."""
        table, seen = self.table, self.input_ranges
        known = (seen.average > 0).cpu()
        if missed := [name for name, one in zip(sites, known.tolist(), strict=True) if not one]:
            user_warnings.warn(
                f"no finite value other than 0 has reached {', '.join(missed[:3])} in the first {self.step} steps: "
                "these activations stay float32. Calibrate for longer (activations_from) if they are used later"
            )
        elements = torch.where(known, seen.elements, 0).to(table.device)
        ranks.maximum_(elements)
        numel, signed, maximum = table.numel.copy(), table.signed.clone(), table.maximum.clone()
        numel[table.weights :] = elements.cpu().numpy()
        signed[table.weights :] = seen.negative
        maximum[table.weights :] = seen.average
        table.set_sizes(numel, signed)
        table.set(table.step, maximum)
        self.frozen = self._row_is_due = True
        # Widths contain the sizes of their tensors, which have changed.
        before, self.widths = self.widths, Widths(table.names, table.channels, table.numel)
        for step, bits in zip(before.step.tolist(), before.word_length, strict=True):
            self.widths.append(step, bits)
        self._use_inputs()

    def refit(self, new: Sequence[Collection[int]]) -> list[str]:
        """Return the activations whose ranges are frozen; those of weights follow the weights anyway."""
        return self.calibrated if self.frozen else []

    def misfits(self, written: Collection[int]) -> list[str]:
        """Return no layer, because ranges follow the weights."""
        return []

    @torch.no_grad()
    def load_state_dict(self, saved: Mapping[str, Any], optimized: Mapping[str, Tensor], *, strict: bool) -> None:
        super().load_state_dict(saved, optimized, strict=strict)
        for name, tensor in self.input_ranges.tensors().items():
            tensor.copy_(saved[name])
        self._use_inputs()

    def _tensors(self) -> dict[str, Tensor]:
        return super()._tensors() | self.input_ranges.tensors()
