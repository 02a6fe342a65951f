"""`Learner`: the user's handle on a run with learned formats."""

import copy
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from adapt.engine.engine import Engine
from adapt.layers.naming import module_site
from adapt.layers.optimizers import is_scaled
from adapt.learned.calibration import run_batches
from adapt.learned.options import FixedWidths, LearnedWidths, MaximumRanges, Plan
from adapt.learned.phases import Phases
from adapt.learned.run import LearnedRun
from adapt.learned.schedule import Schedule
from adapt.numerics import Format
from adapt.trace.widths import Widths


class Size(NamedTuple):
    """Sizes in kB of 8000 bits, and average word lengths, which are NaN if nothing is quantised."""

    weight_kilobytes: float
    activation_kilobytes: float
    weight_bits: float
    activation_bits: float

    @property
    def kilobytes(self) -> float:
        """Weights and activations together."""
        return self.weight_kilobytes + self.activation_kilobytes


class Learner(Engine):
    """Keeps an optimizer's layers on grids whose steps and ranges are learned, or observed under AQT.

    Made by `attach`, `attach_lsq` and `attach_aqt`. Masters, views of the weights in training, evaluation and
    checkpoints, persistence in `optimizer.state_dict()` and the trace work as in a `Controller`. All rounding is to
    nearest.
    """

    _run: LearnedRun

    def __init__(
        self, optimizer: Optimizer, module: nn.Module, parameters: Mapping[str, Tensor], run: LearnedRun
    ) -> None:
        super().__init__(optimizer, module, parameters, run)
        self._schedule = Schedule(optimizer, run.plan)

    def attach(self) -> None:
        """Register the hooks, round the weights, and take the present learning rates for the peaks."""
        super().attach()
        self._schedule.begin()

    @property
    def plan(self) -> Plan:
        """The options of `attach`, `attach_lsq` or `attach_aqt`."""
        return self._run.plan

    @property
    def precisions(self) -> dict[str, Format]:
        """The formats of weights and biases: see `formats`."""
        return {name: form for name, form in self.formats.items() if name in self._run.layers.names}

    @property
    def activation_precisions(self) -> dict[str, Format]:
        """The formats of activations: see `formats`."""
        return {name: form for name, form in self.formats.items() if name not in self._run.layers.names}

    @property
    def steps(self) -> dict[str, NDArray[np.float32]]:
        """The step of each channel of a weight and of each activation, [channels], named as in `formats`.

        This is the learned d or, with `power_of_two`, the power of two nearest to d.
        """
        return self._by_name(self._run.table.used_step)

    @property
    def ranges(self) -> dict[str, NDArray[np.float32]]:
        """The learned range q₊ of each channel of a weight and of each activation, [channels], named as in `formats`.

        A format's largest value is the multiple of the step nearest to its range.
        """
        return self._by_name(self._run.table.maximum)

    def _by_name(self, values: Tensor) -> dict[str, NDArray[np.float32]]:
        table, array = self._run.table, values.cpu().numpy()
        return {
            name if name in self._run.layers.names else module_site(name): array[place].copy()
            for name, place in table.places.items()
            if table.numel[place].any()
        }

    @property
    def size(self) -> Size:
        """The present sizes of weights and activations."""
        return Size(*self._run.sizes.kilobytes, *self._run.sizes.averages)

    @property
    def phase(self) -> str:
        """The phase of the next step: "pretraining", "learning" or "finetuning"; for given widths "lsq" or "aqt"."""
        if isinstance(self.plan, LearnedWidths):
            return self.plan.phases.at(self.step)[0]
        return "lsq" if isinstance(self.plan, FixedWidths) else "aqt"

    @property
    def widths(self) -> Widths:
        """The history of the word lengths of every channel and activation."""
        return self._run.widths

    @property
    def log(self) -> list[dict[str, float | str]]:
        """Figures of each finished phase, by name.

        These are the average bits, the change of the widths (mean bits and the share that moved), and the root mean
        square of the gradient with respect to log₂ of steps and ranges. The learning phase also has the budgets, by how
        much the learned sizes missed them (0.05 is 5 % too large), and the sizes after the cut to the budgets.
        """
        return copy.deepcopy(self._run.log.entries)

    @property
    def skipped(self) -> dict[str, int]:
        """How many gradients of each layer were not finite. The optimizer saw zeros, the formats ignored them."""
        return dict(zip(self._run.layers.names, self._run.layers.skipped.tolist(), strict=True))

    def penalty(self) -> Tensor:
        """Return the two penalties of eq. 2 at the full β, a 0-dim tensor without gradient: the step applies them."""
        plan = self.plan
        return torch.tensor(self._run.sizes.penalty(plan.beta) if isinstance(plan, LearnedWidths) else 0.0)

    @torch.no_grad()
    def _before_update(self, loss: Any) -> None:
        learns = not isinstance(self.plan, MaximumRanges)
        if self.is_attached and learns and self._run.inputs is not None and is_scaled():
            raise RuntimeError(
                "a GradScaler multiplies the gradients from which activations learn their formats: use bfloat16, which "
                "needs no scaler, or leave the activations in float32 (no activation_budget or activation_bits)"
            )
        self._run.learning_rate = self._schedule.step(self.plan, self.step)
        super()._before_update(loss)

    @property
    def is_calibrated(self) -> bool:
        """Whether quantised activations have ranges; True if activations are not quantised."""
        table = self._run.table
        return self._run.inputs is None or bool(table.numel[table.weights :].any())

    def use_phases(self, phases: Phases) -> None:
        """Change the lengths of the phases, for example when the length of the training becomes known late.

        Ends that have passed take effect in the next step. Widths or formats that are already fixed stay fixed.

        Args:
            phases: optimizer steps of each, counted from the run's first step.
        """
        self._run.use_phases(phases)

    def use_steps(self, steps: int) -> None:
        """Change the length of a run of LSQ or AQT, for example when the length of the training becomes known late.

        Args:
            steps: optimizer steps, counted from the run's first step.

        Raises:
            TypeError, ValueError: `steps` is not a positive whole number, or widths are learned: see `use_phases`.
        """
        self._run.use_steps(steps)

    def calibrate(self, batches: Iterable[Any], network: nn.Module | None = None) -> None:
        """Set the activations' first ranges; called by `attach`.

        Args:
            batches: each a tensor, or a tuple of the positional arguments of the network's forward.
            network: the module to run; if None, the module given to `attach`.

        Raises:
            TypeError, ValueError, RuntimeError: there are no batches, forward does not accept one, or a budget cannot
                be met.
        """
        if isinstance(self.plan, MaximumRanges):
            raise ValueError("AQT takes the ranges of activations from its first steps: there is nothing to calibrate")
        inputs, module = self._run.inputs, network or self._module
        if inputs is not None and module is not None:
            with self.master_weights():
                statistics = run_batches(module, batches, inputs.collect_statistics, self._run.table.device)
            self._run.calibrate(statistics)

    # Persistence

    def load_state_dict(self, state: Mapping[str, Any], *, strict: bool = True) -> None:
        """Resume from what `state_dict` returned. Nothing changes unless all of it fits.

        Args:
            state: what `state_dict` returned.
            strict: must be True. A budget applies to a whole network, so layers cannot be matched by name.

        Raises:
            ValueError: `strict` is not True, or the state is of another kind, version, plan or network.
        """
        if strict is not True:
            raise ValueError(
                f"strict must be True, got {strict!r}: learned formats resume with all layers of their network or none"
            )
        super().load_state_dict(state)
        self._schedule.forget()
