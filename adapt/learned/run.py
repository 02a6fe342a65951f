"""A run whose formats are learned: its state between steps, and what a step does to it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from adapt.distributed import ranks
from adapt.engine import persistence
from adapt.engine.fused_sgd import TakeOver
from adapt.engine.run import HookedPart, Run
from adapt.layers.choice import Choice
from adapt.layers.naming import module_site
from adapt.learned import initial_formats
from adapt.learned import persistence as learned_persistence
from adapt.learned.activations import InputQuantizers, SiteStatistics
from adapt.learned.format_table import FormatTable
from adapt.learned.log import Log
from adapt.learned.masters import LearnedMasters
from adapt.learned.normalization import Reestimation
from adapt.learned.options import FixedWidths, LearnedWidths, Plan
from adapt.learned.phases import Phases
from adapt.learned.projection import fit_to_budgets
from adapt.learned.range_growth import is_due
from adapt.learned.sizes import Sizes
from adapt.learned.updates import StepRule, WidthRule
from adapt.numerics import Format
from adapt.trace import Trace
from adapt.trace.description import made_by
from adapt.trace.widths import Widths
from adapt.weights.masters import Masters

_ENERGY_DECAY = 0.8
"""Decay per update of the energy of earlier gradients."""

_MISFIT = 0.5
"""Formats do not fit weights of whose energy rounding takes more than this. Two bits that fit take a quarter; one bit
takes all in LSQ's first step, and so tells nothing."""

ROW_INTERVAL = 20
"""Steps between two rows of the trace if formats change in every step."""


class LearnedRun(Run):
    """Masters, formats and phases of a run with learned formats.

    Args:
        plan: the options of `adapt.learned.attach` or `attach_lsq`.
        choice: selects the parameters that are layers.
        layers: weights and quantised biases by name; their present values become the masters.
        module: the module that owns them.

    Attributes:
        table: steps and ranges of weights and activations.
        inputs: rounds the layers' inputs; None if they are not quantised.
        rule: updates the formats.
        widths: the history of the word lengths.
        sizes: the sizes of the formats and their budgets.
        log: figures of the finished phases.
        learning_rate: the rate of the next update of LSQ's steps.
        settled: whether the widths no longer change.
        frozen: whether the formats no longer change.

    Raises:
        NotImplementedError: a weight is sharded over several processes.
        ValueError: the weight budget cannot be met, or there is no layer whose activations could be quantised.
    """

    widths: Widths

    def __init__(self, plan: Plan, choice: Choice, layers: Mapping[str, Tensor], module: nn.Module) -> None:
        super().__init__(choice)
        self.plan = plan
        self.frozen = self.settled = False
        self.learning_rate = 0.0
        self.layers, self.table, self.inputs = self._prepare(layers, module)
        self.sizes = Sizes(self.table, plan.weight_budget, plan.activation_budget, plan.activation_size)
        self.rule: WidthRule | StepRule = StepRule()
        self.log = Log(self.table, self.sizes)
        self.norms = Reestimation(module)
        self.count = 0
        self.energy = torch.zeros(len(self.table.numel), dtype=torch.float64, device=self.table.device)
        self._trace = Trace(self.layers.names, self.layers.numel)
        self._row_is_due = False
        self.sizes.check(self.sizes.budgets[:1])
        self._begin_weights()
        self._begin()

    def _prepare(
        self, layers: Mapping[str, Tensor], module: nn.Module
    ) -> tuple[LearnedMasters, FormatTable, InputQuantizers | None]:
        """Return the masters, the table of formats, and the input quantizers, if any."""
        return initial_formats.prepare(self.plan, layers, module, self.pin)

    def _begin_weights(self) -> None:
        """Set the weights' first formats."""
        initial_formats.begin_weights(self.plan, self.table, self.layers, self._first_bits())

    def calibrate(self, statistics: Sequence[SiteStatistics]) -> None:
        """Set the first formats of activations from what calibration collected.

        Raises:
            ValueError: calibration reached no input, or no finite values, or the activation budget cannot be met.
        """
        assert self.inputs is not None
        met = initial_formats.measure_activations(self.table, self.inputs.names, statistics)
        self.sizes.check((None, self.sizes.budgets[1]))
        initial_formats.begin_activations(self.plan, self.table, met, self._first_bits())
        self._begin()

    def _begin(self) -> None:
        """Create widths, rule, log and hooks for the present sizes of the formats, and begin the first phase."""
        plan, table = self.plan, self.table
        self.widths = Widths(table.names, table.channels, table.numel)
        is_learned = isinstance(plan, LearnedWidths)
        self.rule = WidthRule(self.sizes.loads, self.sizes.targets) if is_learned else StepRule()
        self.log.begin()
        if self.inputs is not None:
            self.inputs.quantize(table, plan.activation_scaling, plan.delta)

    def use_phases(self, phases: Phases) -> None:
        """Change the lengths of the phases: see `Learner.use_phases`."""
        if isinstance(self.plan, LearnedWidths):
            self.plan = replace(self.plan, phases=phases)
            self._resume_averaging()

    def use_steps(self, steps: int) -> None:
        """Change the length of the run: see `Learner.use_steps`."""
        if isinstance(self.plan, LearnedWidths):
            raise ValueError(f"learned widths have phases, not {steps} steps: call use_phases")
        self.plan = replace(self.plan, steps=steps)

    def _first_bits(self) -> NDArray[np.int64]:
        averages = [load.average(target) for load, target in zip(self.sizes.loads, self.sizes.targets, strict=True)]
        return initial_formats.first_bits(self.plan, self.table, averages)

    # The engine's interface

    @property
    def all_masters(self) -> list[Masters]:
        """The masters of weights and biases."""
        return [self.layers]

    @property
    def hooked_parts(self) -> list[HookedPart]:
        return [part for part in (self.inputs, self.norms) if part is not None]

    @property
    def formats(self) -> dict[str, Format]:
        names = () if self.inputs is None else self.inputs.names
        rounded = [name for name in names if self.table.numel[self.table.places[name]].any()]
        return self.layers.formats | {module_site(name): self.table.format_of(name, axis=None) for name in rounded}

    @property
    def trace(self) -> Trace:
        """The history of each layer, with a row for the first step and for every step in which formats were updated.

        Once formats are frozen the rows continue at the same interval. Word lengths are averages over a layer in whole
        bits; `widths` has them channel by channel.
        """
        self._trace.run = made_by(plan=type(self.plan).__name__, **vars(self.plan))
        return self._trace

    def join(self, layers: Mapping[str, Tensor]) -> None:
        """Refuse layers that join later: the budget applies to a whole network.

        Raises:
            RuntimeError: there is a new layer.
        """
        new = [name for name in layers if name not in self.layers.names]
        if new:
            raise RuntimeError(
                f"{', '.join(new[:4])} joined the optimizer or was unfrozen after learned formats were attached: "
                "attach once all layers are in the optimizer"
            )

    @torch.no_grad()
    def refit(self, new: Sequence[Collection[int]]) -> list[str]:
        """Begin with the weights that were loaded, if they come before the first step and are finite.

        Later the formats stay as they have been learned, and so do those of activations once they are calibrated.
        """
        loaded = [self.layers.weights[i] for i in new[0]]
        if self.step or not all(bool(torch.isfinite(weight).all()) for weight in loaded):
            return super().refit(new)
        self._begin_weights()
        self._begin()
        self.requantize()
        return self.calibrated

    def misfits(self, written: Collection[int]) -> list[str]:
        """Return the layers among these that rounding takes most of, except those with words of one bit."""
        names, table = self.layers.names, self.table
        longer = [i for i in sorted(written) if (table.bits[table.places[names[i]]] > 1).all()]
        return [names[i] for i in longer if self.layers.loss(i) > _MISFIT]

    @property
    def calibrated(self) -> list[str]:
        """The activations that have formats, by the names of `formats`."""
        return [name for name in self.formats if name not in self.layers.formats]

    def update_parts(self, parameters: Mapping[str, Tensor], optimizer: Optimizer, module: nn.Module | None) -> None:
        """Only show Ŵ: biases are layers here, and the hooks on the module exist from the beginning."""
        self.requantize()

    # One step

    def before_update(self, take_over: TakeOver | None) -> bool:
        """p ← W, turn G into dL/dW, and update the formats if they are due; torch makes the update of the weights."""
        plan = self.plan
        self.losses.forget()
        self.layers.backward(plan.weight_scaling, plan.delta, collect=not self.frozen)
        at, self.step = self.step, self.step + 1
        self._row_is_due = self.step == 1
        if isinstance(plan, FixedWidths):
            self.count += 1
            self._update_formats(at)
            self._row_is_due |= self.step % ROW_INTERVAL == 0
        elif isinstance(plan, LearnedWidths):
            self._learn_widths(plan, at)
        return False

    def _learn_widths(self, plan: LearnedWidths, at: int) -> None:
        """Perform one step of learned widths, and end phases.

        The end of a phase is handled in or after its last step: phases may change during a run, so it may be past.
        """
        phases, ends = plan.phases, plan.phases.ends
        due = [name for name, end in ends.items() if self.step >= end and not self.log.has(name)]
        settling = not self.settled and self.step >= phases.settling
        freezing = not self.frozen and self.step >= ends["learning"]
        if not self.frozen:
            self.count += 1
            if self.count >= plan.update_every or settling or due:
                self._update_formats(min(at, ends["learning"] - 1))
                self._row_is_due = True
        else:
            # Formats stay, but which weights are zero keeps changing.
            self._row_is_due |= self.step % plan.update_every == 0 or self.step == phases.total
        if "pretraining" in due:
            self.log.end(due.pop(0), phases.pretraining)
        if settling:
            self.log.warn_if_unmoved()
            self.log.missed = fit_to_budgets(self.table, self.layers, self.energy, self.sizes.loads, self.sizes.targets)
            self.settled = True
        for name in due:
            self.log.end(name, getattr(phases, name))
        self.frozen |= freezing
        if self.frozen and self.step >= min(ends["learning"] + plan.update_every, phases.total):
            self.norms.end()
        elif freezing:
            self.norms.begin()

    def _update_formats(self, at: int) -> None:
        """Update the formats by the gradients since the last update."""
        table, plan, rule = self.table, self.plan, self.rule
        # Only the sums of activations: weights' gradients are averaged over the processes already.
        ranks.average_(table.sums[table.weights :])
        if isinstance(plan, LearnedWidths) and isinstance(rule, WidthRule):
            energy = table.figures(self.count)[2]
            self.energy = (
                energy if not bool(self.energy.any()) else _ENERGY_DECAY * self.energy + (1 - _ENERGY_DECAY) * energy
            )
            found = rule.update(plan, table, self.count, at, settled=self.settled)
            self.log.gradients.append(float(found.square().mean().sqrt()))
        elif isinstance(plan, FixedWidths) and isinstance(rule, StepRule):
            rule.update(plan, table, self.count, self.learning_rate)
        table.sums.zero_()
        self.count = 0

    def after_update(self) -> None:
        self.layers.store(self.step)
        self._follow_weights()
        if self._row_is_due:
            self._add_row()

    def _follow_weights(self) -> None:
        """In a network that began near zero, scale up formats that weights have outgrown, until widths are settled."""
        every = self.plan.update_every if isinstance(self.plan, LearnedWidths) else ROW_INTERVAL
        if self.table.follows and not self.settled and is_due(self.step, every):
            grown = initial_formats.follow_weights(self.plan, self.table, self.layers)
            if grown.any():
                self.rule.forget(grown)
                self._row_is_due = True
                self.requantize()

    def requantize(self) -> None:
        self.layers.show("masters", rewrite=True)
        self.layers.store(self.step)

    def _add_row(self) -> None:
        """Add a row to the trace and to the widths."""
        table, layers = self.table, self.layers
        layers.count_nonzeros()
        words, fractions = table.averages(layers.names)
        self._trace.append(
            self.step,
            word_length=np.rint(words).clip(1, 32).astype(np.int64),
            fraction_length=np.rint(fractions).clip(-126, 126).astype(np.int64),
            nonzero=layers.nonzeros.cpu().numpy() / np.maximum(layers.numel, 1),
        )
        self.widths.append(self.step, np.where(table.numel > 0, table.bits, 32))

    # Persistence

    def state_dict(self, optimized: Mapping[str, Tensor]) -> dict[str, Any]:
        between = {
            "micro_losses": self.losses.state(),
            "micro_gradients": persistence.copied(optimized, (p.grad for p in optimized.values())),
        }
        return {
            "version": persistence.VERSION,
            "kind": type(self.plan).__name__,
            "step": self.step,
            "count": self.count,
            "frozen": self.frozen,
            "settled": self.settled,
            "layers": list(self.layers.names),
            "names": list(self.table.names),
            "masters": persistence.copied(self.layers.names, self.layers.weights),
            "formats": self.table.state_dict(),
            persistence.FORMATS: persistence.to_bytes(persistence.pack_formats(self.formats)),
            "gradients": list(self.log.gradients),
            **{name: tensor.clone() for name, tensor in self._tensors().items()},
            "rule": persistence.to_bytes(self.rule.state_dict()),
            "log": persistence.to_bytes(self.log.state_dict()),
            "trace": persistence.to_bytes(self.trace.state_dict()),
            "widths": persistence.to_bytes(self.widths.state_dict()),
            **(between if self.losses else {}),
            **persistence.pack_bits(self.plan.layer_bits),
        }

    @torch.no_grad()
    def load_state_dict(self, saved: Mapping[str, Any], optimized: Mapping[str, Tensor], *, strict: bool) -> None:
        saved = persistence.upgraded(saved)
        learned_persistence.check(
            saved,
            kind=type(self.plan).__name__,
            names=self.table.names,
            masters=dict(zip(self.layers.names, self.layers.weights, strict=True)),
            tensors=self._tensors(),
            optimized=optimized,
        )
        self.table.check_state(saved.get("formats"))
        rule, log = persistence.from_bytes(saved["rule"]), persistence.from_bytes(saved["log"])
        self.rule.check_state(rule, self.table)
        self.log.check_state(log)
        trace, widths = learned_persistence.histories(saved, self._trace, self.widths)
        if self.plan.layer_bits is None:
            words = self.plan.words
            bits = persistence.unpack_bits(saved, shortest=words[0], longest=words[-1])
            self.plan = replace(self.plan, layer_bits=bits)
            initial_formats.bound(self.plan, self.table)

        self.table.load_state_dict(saved["formats"])
        self._begin()
        self.rule.load_state_dict(rule, self.table)
        self.step, self.count = saved["step"], saved["count"]
        self.frozen, self.settled = saved["frozen"], saved["settled"]
        self.log.load_state_dict(log)
        self.log.gradients = list(saved["gradients"])
        self.log.began = saved["began"].cpu().numpy().copy()
        self._trace, self.widths = trace, widths
        self.energy.copy_(saved["energy"])
        self.layers.skipped.copy_(saved["skipped"])
        for name, weight in zip(self.layers.names, self.layers.weights, strict=True):
            weight.copy_(saved["masters"][name])
        self.losses.load(saved.get("micro_losses", ()))
        for name, gradient in saved.get("micro_gradients", {}).items():
            if name in optimized:
                optimized[name].grad = gradient.to(optimized[name].device, copy=True)
        self._resume_averaging()
        self.requantize()

    def _resume_averaging(self) -> None:
        """Average batch-norm statistics evenly if this is one of the first steps of fine-tuning."""
        self.norms.end()
        if isinstance(self.plan, LearnedWidths) and self.frozen:
            first, total = self.plan.phases.ends["learning"], self.plan.phases.total
            if self.step < min(first + self.plan.update_every, total):
                self.norms.begin(forget=self.step == first)

    def _tensors(self) -> dict[str, Tensor]:
        return {"energy": self.energy, "skipped": self.layers.skipped, "began": torch.from_numpy(self.log.began)}
