"""The policy's decisions: replay to it the figures that waited on the device, and write the trace."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapt import penalties, user_warnings
from adapt.adaptive.step_figures import Figures, Slot, StepFigures
from adapt.distributed.sharding import FullTensors
from adapt.numerics import LONGEST_WORD, Bounds, LayerFormat
from adapt.switching.bounds import within
from adapt.switching.policy import Observation, Policy, State, for_layers
from adapt.switching.saved_state import carry
from adapt.trace import Trace

CAPACITY = 128
"""The most steps whose figures may wait on the device, however patient the policy is."""


class Decisions:
    """A policy, its state and its trace. Figures of steps in which no layer can switch wait on the device.

    Args:
        policy: the policy.
        device: the device on which the figures are measured.
        trace_every: record every k-th step.
    """

    state: State
    bounds: Sequence[Bounds]
    trace: Trace
    skipped: NDArray[np.int64]

    def __init__(self, policy: Policy[Any], device: torch.device, *, trace_every: int) -> None:
        self.policy = policy
        self._device, self._trace_every = device, trace_every
        self._warned: set[str] = set()

    def start(self, state: State, bounds: Sequence[Bounds], trace: Trace) -> None:
        """Begin with this state, these bounds and this trace; drop figures that the policy has not seen.

        Args:
            state: the policy's state.
            bounds: the fewest and the most bits of each layer; empty if the policy alone decides.
            trace: the history so far.
        """
        self.state, self.bounds, self.trace = state, bounds, trace
        self._layer_policy = for_layers(self.policy, trace.layers)
        self._bounded_from: tuple[LayerFormat, ...] | None = None
        self.skipped = np.zeros(len(trace.layers), np.int64)
        self._sizes = np.maximum(trace.numel, 1)
        self._words_from: tuple[LayerFormat, ...] | None = None
        self._pending = StepFigures(len(trace.layers), 0, self._device)
        self._waiting_steps: list[tuple[int, NDArray[np.bool_], NDArray[np.int64], bool]] = []
        self._open_row: tuple[int, dict[str, NDArray[Any]]] | None = None
        self._closed_rows: list[tuple[int, dict[str, NDArray[Any]]]] = []
        self._update_patience()

    def restart(self, layers: Sequence[int], weights: Sequence[Tensor]) -> None:
        """Restart the policy for these layers, with these weights. The caller must have replayed all steps."""
        if len(layers) == len(weights):
            self.state = self._layer_policy.start(weights)
        else:
            for layer in layers:
                only = for_layers(self.policy, [self.trace.layers[layer]]).start([weights[layer]])
                # This layer's fields come from its new start, all others from the present state.
                self.state = carry(self.state, carry(only, self.state, {layer: 0}), {})
        self._update_patience()

    def change_policy(self, policy: Policy[Any]) -> None:
        """Replace the policy by one of the same class. The caller must have replayed all steps."""
        self._layer_policy = for_layers(policy, self.trace.layers)
        self.policy = policy
        self._update_patience()

    @property
    def formats(self) -> tuple[LayerFormat, ...]:
        """The format of every layer: what the policy chose, moved into the layer's bounds."""
        if not self.bounds:
            return self.state.formats
        if self._bounded_from is not self.state.formats:
            self._bounded_from = self.state.formats
            self._formats = tuple(map(within, self._bounded_from, self.bounds))
        return self._formats

    @property
    def word_lengths(self) -> NDArray[np.int64]:
        """Bits per weight, [layers]; 32 for a layer in float32."""
        if self._words_from is not self.formats:
            self._words_from = self.formats
            words = [LONGEST_WORD if form is None else form.word_length for form in self.formats]
            self._words = np.array(words, np.int64)
        return self._words

    @property
    def can_switch(self) -> bool:
        """Whether a layer may switch in the next step."""
        return len(self._pending) >= self._patience

    @property
    def due(self) -> bool:
        """Whether the policy has to see the newest step now: a layer may switch in it, or the buffer is full."""
        return len(self._pending) > self._patience or self._pending.full or self.policy.keeps_gradients

    @property
    def slot(self) -> Slot:
        """Where the figures of the next step go, on the device. `add` completes the step."""
        return self._pending.slot

    def add(
        self, step: int, active: NDArray[np.bool_], fraction_lengths: NDArray[np.int64], loss_observed: bool
    ) -> None:
        """Count the slot, which has been filled in, as the next step.

        Args:
            step: the step's number, greater than all before it.
            active: which layers have a gradient, bool [layers].
            fraction_lengths: bits behind the binary point of the Ŵ that the step's forward pass saw, [layers]; 0 in
                float32.
            loss_observed: whether the loss was filled in.
        """
        self._waiting_steps.append((step, active, fraction_lengths, loss_observed))
        self._pending.add()

    def replay(
        self,
        weights: Sequence[Tensor],
        sums: Sequence[Tensor],
        windows: Sequence[list[Tensor]],
        l1: NDArray[np.float64],
        l2: float,
        saturated: Callable[[], NDArray[np.float64]],
    ) -> list[int]:
        """Show the policy all waiting steps, and return the layers whose window ended.

        Args:
            weights: the master weights.
            sums: the running sums of the gradients, if the policy asks for them.
            windows: the gradients of each layer's window, including the newest.
            l1: α of each layer.
            l2: β.
            saturated: measures the share of each layer's master weights outside its format's range, [layers].
        """
        if not len(self._pending):
            return []
        can_end = len(self._pending) > self._patience
        figures = self._pending.take()
        waiting, self._waiting_steps = self._waiting_steps, []
        # A layer can switch only in the newest step, so all steps ran with these word lengths.
        words = self.word_lengths
        norms, norms_of_sums = np.sqrt(figures.squared), np.sqrt(figures.squared_sums)
        seen, sound = np.isfinite(figures.squared), np.isfinite(figures.squared_weights)
        all_well = seen.all() and sound.all() and figures.nonzeros.all()
        losses = (
            figures.losses
            + penalties.elastic_net(figures.l1_norms, figures.squared_weights, l1, l2)
            + penalties.word_length_sparsity(words, figures.nonzeros / self._sizes)
        ).tolist()
        for i, (step, active, fraction_lengths, loss_observed) in enumerate(waiting):
            # This step's forward pass used the weights that the previous step left.
            self.close_row(figures.nonzeros[i], fraction_lengths)
            if not all_well:
                self._check(figures, i, active, windows)
            observation = Observation(
                loss=losses[i] if loss_observed else None,
                norms=norms[i],
                norms_of_sums=norms_of_sums[i],
                seen=seen[i],
                sound=sound[i],
                weights=weights,
                sums=sums,
                windows=FullTensors(windows),
                l1=l1,
                l2=l2,
                measure_saturation=saturated,
                layer_bits=self.bounds,
            )
            before = self.state.gradients
            self.state = self._layer_policy.advance(self.state, observation)
            self._open_row = (step, self._layer_policy.record(self.state))
        self._update_patience()
        if not can_end:
            return []
        return np.flatnonzero((self.state.gradients == 0) & (seen[-1] | (before > 0))).tolist()

    def _update_patience(self) -> None:
        """Ask the policy for how many steps no layer can switch, and make room for their figures."""
        self._patience = self._layer_policy.patience(self.state)
        rows = min(self._patience + 1, CAPACITY)
        if rows > self._pending.capacity:
            self._pending = StepFigures(len(self.trace.layers), rows, self._device)

    def close_row(self, nonzeros: NDArray[np.float64], fraction_lengths: NDArray[np.int64]) -> None:
        """Complete the newest step's row of the trace, now that the Ŵ it left is known."""
        if self._open_row is None:
            return
        (step, record), self._open_row = self._open_row, None
        if step % self._trace_every == 0:
            record["word_length"] = self.word_lengths
            record["fraction_length"] = fraction_lengths
            record["nonzero"] = nonzeros / self._sizes
            self._closed_rows.append((step, record))
        if len(self._closed_rows) == CAPACITY:
            self.write()

    def write(self) -> None:
        """Append the completed rows to the trace: a block costs hardly more than a single row."""
        if self._closed_rows:
            steps, records = zip(*self._closed_rows, strict=True)
            self._closed_rows.clear()
            self.trace.append(steps, **{field: np.stack([record[field] for record in records]) for field in records[0]})

    def _check(self, figures: Figures, i: int, active: NDArray[np.bool_], windows: Sequence[list[Tensor]]) -> None:
        """Count gradients that are not finite, and warn once about each layer that has a problem."""
        names = self.trace.layers
        for layer in np.flatnonzero(active & ~np.isfinite(figures.squared[i])).tolist():
            self.skipped[layer] += 1
            if windows[layer]:
                windows[layer].pop()
            self.warn(
                f"the gradient of {names[layer]} is not finite: it counts as zero, now and whenever this happens again "
                "(controller.skipped counts how often)"
            )
        for layer in np.flatnonzero(~np.isfinite(figures.squared_weights[i])).tolist():
            self.warn(f"the master weights of {names[layer]} are not finite: its precision stays as it is")
        # A layer that was initialised to zero is no fault of its format.
        for layer in np.flatnonzero((figures.nonzeros[i] == 0) & (figures.l1_norms[i] > 0)).tolist():
            self.warn(
                f"every quantised weight of {names[layer]} is zero, so the layer passes nothing on: "
                "start with a longer fraction, and lower l1 if it is above 0"
            )

    def warn(self, message: str) -> None:
        """Warn with this message, only once."""
        if message not in self._warned:
            self._warned.add(message)
            user_warnings.warn(message)
