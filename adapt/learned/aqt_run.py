"""A run of AQT: word lengths are given, and ranges follow from the largest magnitudes of weights and activations."""

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
from adapt.learned.run import ROWS, LearnedRun
from adapt.trace.widths import Widths


class MaximumTable(FormatTable):
    """Formats of given word lengths, whose steps follow from their ranges: see `adapt.learned.aqt.step`."""

    def use_bits(self, bits: NDArray[np.int64]) -> None:
        """Use these word lengths, [F]."""
        self.bits = bits
        self._derive()

    @torch.no_grad()
    def set(self, step: Tensor, maximum: Tensor) -> None:
        """Use these ranges, [F]; the steps follow from them, whatever `step` says."""
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
    """Masters whose channels are rounded in the ranges that they have at that moment."""

    def _round(self, indices: Sequence[int], outputs: Sequence[Tensor], *, stochastic: bool) -> None:
        """AQT 3.2: the range of a channel is max|w| of its present weights."""
        maximum = self.table.maximum.clone()
        for i in indices:
            weight, channels = self.weights[i], self.channels[i]
            if weight.numel():
                largest = channels.view(weight).abs().amax(channels.summed)
                maximum[self.table.places[self.names[i]]] = largest.flatten()
        self.table.set(self.table.step, maximum)
        super()._round(indices, outputs, stochastic=stochastic)


class Observation:
    """What passes at the inputs while they are still float32, by site.

    Attributes:
        peaks: the largest −x and the largest x since the last step, float32 [sites, 2]; −∞ where nothing has passed.
        average: the moving average of max|x|, float32 [sites].
        count: the steps that are in it, int64 [sites].
        negative: whether a value below zero has passed, bool [sites].
        elements: of the largest input, for one sample, int64 [sites].
    """

    def __init__(self, sites: int, device: torch.device) -> None:
        self.peaks = torch.full((sites, 2), -torch.inf, device=device)
        self.average = torch.zeros(sites, device=device)
        self.count = torch.zeros(sites, dtype=torch.int64, device=device)
        self.negative = torch.zeros(sites, dtype=torch.bool, device=device)
        self.elements = torch.zeros(sites, dtype=torch.int64)

    @torch.no_grad()
    def end_step(self, met: Sequence[SitePeaks], decay: float) -> None:
        """Take the step's peaks, over all processes, into the averages; those that are not finite are left out."""
        ranks.maximum_(self.peaks)
        largest = self.peaks.amax(1)
        seen = largest.isfinite()
        moved = torch.where(self.count > 0, moving_average(self.average, largest, decay), largest)
        self.average.copy_(torch.where(seen, moved, self.average))
        self.count += seen
        self.negative |= seen & (self.peaks[:, 0] > 0)
        self.peaks.fill_(-torch.inf)
        self.elements.copy_(torch.maximum(self.elements, torch.tensor([one.elements for one in met])))

    def tensors(self) -> dict[str, Tensor]:
        """Return what a resumed run needs, by name."""
        return {f"observed_{name}": value for name, value in vars(self).items()}


class AqtRun(LearnedRun):
    """Masters and formats of a run of AQT. Inputs stay float32 until their ranges are `frozen`.

    Args:
        plan: the options of `adapt.learned.attach_aqt`.
        choice, layers, module: as in `LearnedRun`.

    Raises:
        NotImplementedError: a weight lies on several processes.
        ValueError: no layer whose activations could be quantised.
    """

    plan: MaximumRanges
    table: MaximumTable
    _met: Sequence[SitePeaks] = ()

    def _prepare(
        self, layers: Mapping[str, Tensor], module: nn.Module
    ) -> tuple[LearnedMasters, FormatTable, InputQuantizers | None]:
        prepared = initial_formats.prepare(
            self.plan, layers, module, self.pin, table=MaximumTable, masters=MaximumMasters
        )
        _, table, _ = prepared
        self.observation = Observation(len(table.numel) - table.weights, table.device)
        return prepared

    def _begin_weights(self) -> None:
        """Give every layer its word lengths, of its weight and of its input; ranges follow when weights are rounded."""
        plan, table = self.plan, self.table
        first, last = self.layers.names[0], self.layers.names[-1]
        bits = np.where(table.is_weight, plan.weight_bits, plan.activation_bits or plan.weight_bits).astype(np.int64)
        # A network of one layer has only a first one.
        for name, width in ((last, plan.last_bits), (first, plan.first_bits)):
            for tensor in {name, f"{name}.input"} & set(table.places):
                bits[table.places[tensor]] = width
        table.use_bits(bits)

    def _begin(self) -> None:
        table = self.table
        self.widths = Widths(table.names, table.channels, table.numel)
        self.log.begin()
        self._use_inputs()

    def _use_inputs(self) -> None:
        """Look at the inputs, or round them once their ranges are frozen."""
        if self.inputs is None:
            return
        if self.frozen:
            self.inputs.quantize(self.table, self.plan.activation_scaling, self.plan.delta)
        else:
            self._met = self.inputs.look(self.observation.peaks)

    def before_update(self, take_over: TakeOver | None) -> bool:
        """p ← W, and a step of calibration; gradients go straight through, for no weight lies outside of its range."""
        plan, table = self.plan, self.table
        self.losses.forget()
        self.layers.back(self.layers.gradients(), plan.weight_scaling, plan.delta, collect=False)
        # Nothing is learned from what backward leaves there.
        table.sums.zero_()
        self.step += 1
        self._news = self.step == 1 or self.step % ROWS == 0
        if self.inputs is not None and not self.frozen:
            self.observation.end_step(self._met, plan.decay)
            if self.step >= plan.calibration:
                self._freeze(self.inputs.names)
        return False

    @torch.no_grad()
    def _freeze(self, sites: Sequence[str]) -> None:
        """AQT 3.2: the ranges of activations are their moving averages from here on, and activations are rounded."""
        table, seen = self.table, self.observation
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
        self.frozen = self._news = True
        # Widths carry the sizes of what they are of.
        before, self.widths = self.widths, Widths(table.names, table.channels, table.numel)
        for step, bits in zip(before.step.tolist(), before.word_length, strict=True):
            self.widths.append(step, bits)
        self._use_inputs()

    def begin_anew(self, new: Sequence[Collection[int]]) -> None:
        """Warn if activations keep the ranges of the weights before. Those of weights follow them, loaded or not."""
        if self.inputs is not None and self.frozen:
            user_warnings.warn(
                "weights were loaded after the ranges of activations were frozen, and these stay those of the weights "
                "before: load the weights first, then attach"
            )

    @torch.no_grad()
    def load_state_dict(self, saved: Mapping[str, Any], optimized: Mapping[str, Tensor], *, strict: bool) -> None:
        """Go on from `state_dict`: see `Run.load_state_dict`."""
        super().load_state_dict(saved, optimized, strict=strict)
        for name, tensor in self.observation.tensors().items():
            tensor.copy_(saved[name])
        self._use_inputs()

    def _tensors(self) -> dict[str, Tensor]:
        return super()._tensors() | self.observation.tensors()
