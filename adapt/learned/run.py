"""What a run with learned formats must remember between two steps, and what a step does to it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adapt.distributed import ranks
from adapt.learned import start, state
from adapt.learned.activations import Met
from adapt.learned.log import Log
from adapt.learned.masters import LearnedMasters
from adapt.learned.normalization import Reestimation
from adapt.learned.phases import Phases
from adapt.learned.plan import FixedWidths, LearnedWidths, Plan
from adapt.learned.rules import StepRule, WidthRule
from adapt.learned.settling import settle
from adapt.learned.sizes import Sizes
from adapt.learned.widths import Widths
from adapt.run import Run, checkpoint
from adapt.run.losses import MicroLosses
from adapt.run.settings import Settings
from adapt.trace import Trace
from adapt.weights.descent import TakeOver
from adapt.weights.masters import Masters

_FADING = 0.8
"""What an update keeps of the gradients' energy before it."""

_LSQ_ROWS = 20
"""Steps between two rows of the trace under LSQ, whose formats move in every step."""


class LearnedRun(Run):
    """Masters, formats and phases of a run. It knows neither optimizer nor hooks on it.

    Args:
        plan: what the user chose.
        settings: the options that all controllers have.
        layers: weights and quantised biases by name; their values now are the masters.
        module: what owns them.

    Attributes:
        formats: steps and ranges of weights and activations.
        sites: what rounds activations; None where they stay as they are.
        rule: what moves the formats.
        widths: the word lengths so far.
        sizes: how large the formats are, and may be.
        log: what each finished phase did.
        settled, frozen: whether the widths, and the steps too, stay as they are.

    Raises:
        NotImplementedError: a weight lies on several processes.
        ValueError: a weight budget that cannot be met, or no layer whose activations could be quantised.
    """

    layers: LearnedMasters
    rule: WidthRule | StepRule
    widths: Widths

    def __init__(self, plan: Plan, settings: Settings, layers: Mapping[str, Tensor], module: nn.Module) -> None:
        self.plan, self.settings, self.step = plan, settings, 0
        self.seed, self.stochastic = 0, False
        self.losses = MicroLosses()
        self.biases = self.activations = self.execution = None
        self.frozen = self.settled = False
        self.layers, self.formats, self.sites = start.prepare(plan, layers, module)
        self.sizes = Sizes(plan, self.formats)
        self.log = Log(self.formats, self.sizes)
        self.norms = Reestimation(module)
        self.count = 0
        self.energy = torch.zeros(len(self.formats.numel), dtype=torch.float64, device=self.formats.device)
        self._trace = Trace(self.layers.names, self.layers.numel)
        self._news = False
        self.sizes.check(self.sizes.budgets[:1])
        start.begin_weights(plan, self.formats, self.layers, self._first_bits())
        self._go_on()

    def calibrate(self, met: Sequence[Met]) -> None:
        """Begin with what was met at the sites.

        Raises:
            ValueError: no site met anything, one nothing finite, or an activation budget that cannot be met.
        """
        assert self.sites is not None
        start.begin_activations(self.plan, self.formats, self.sites.names, met)
        self.sizes.check(self.sizes.budgets)
        start.begin_widths(self.plan, self.formats, self._first_bits())
        self._go_on()

    def _go_on(self) -> None:
        """Let all follow the formats' sizes, and begin the first phase."""
        plan, formats = self.plan, self.formats
        self.widths = Widths(formats.names, formats.channels, formats.numel)
        self.rule = (
            WidthRule(plan, self.sizes.loads, self.sizes.targets) if isinstance(plan, LearnedWidths) else StepRule(plan)
        )
        self.log.begin()
        if self.sites is not None:
            self.sites.quantize(formats, plan.activation_scaling, plan.delta)

    def use_phases(self, phases: Phases) -> None:
        """Let the phases have other lengths: see `Learner.use_phases`."""
        if isinstance(self.rule, WidthRule):
            self.plan = self.rule.plan = replace(self.rule.plan, phases=phases)
            self._go_on_averaging()

    def _first_bits(self) -> Any:
        averages = [load.average(target) for load, target in zip(self.sizes.loads, self.sizes.targets, strict=True)]
        return start.first_bits(self.plan, self.formats, averages)

    # What controllers ask of a run

    @property
    def banks(self) -> list[Masters]:
        """The masters of weights and biases."""
        return [self.layers]

    @property
    def hooked(self) -> list[Any]:
        """What acts on the module beside the weights."""
        return [part for part in (self.sites, self.norms) if part is not None]

    @property
    def trace(self) -> Trace:
        """Layer by layer what happened: a row for the first step, for every step in which formats moved, and afterwards
        as often. Its word lengths are a layer's average in whole bits; `widths` has them channel by channel."""
        return self._trace

    def settle(self) -> None:
        """Nothing ever waits."""

    def join(self, layers: Mapping[str, Tensor]) -> None:
        """Refuse layers that come later: the budget is that of a whole network.

        Raises:
            RuntimeError: there is a new one.
        """
        new = [name for name in layers if name not in self.layers.names]
        if new:
            raise RuntimeError(
                f"{', '.join(new[:4])} joined the optimizer or was unfrozen after learned formats were attached: "
                "attach when all layers are there"
            )

    def follow(self, biases: Mapping[str, tuple[Tensor, int]], module: nn.Module | None) -> None:
        """Show Ŵ."""
        self.renew()

    # One step

    def before_update(self, take_over: TakeOver) -> bool:
        """p ← W, G becomes the gradient to W, and the formats move where it is their turn; the update is torch's."""
        plan = self.plan
        self.losses.forget()
        self.layers.back(self.layers.gradients(), plan.weight_scaling, plan.delta, collect=not self.frozen)
        at, self.step = self.step, self.step + 1
        self._news = self.step == 1
        if isinstance(plan, FixedWidths):
            self.count += 1
            self._move(at)
            self._news |= self.step % _LSQ_ROWS == 0
        else:
            self._learn(plan, at)
        return False

    def _learn(self, plan: LearnedWidths, at: int) -> None:
        """One step of learned widths, and the ends of phases.

        An end is due from its step on, not in it alone: phases may change in the middle of a run, so that it is past.
        """
        phases, ends = plan.phases, plan.phases.ends
        due = [name for name, end in ends.items() if self.step >= end and not self.log.has(name)]
        settling = not self.settled and self.step >= phases.settling
        freezing = not self.frozen and self.step >= ends["learning"]
        if not self.frozen:
            self.count += 1
            if self.count >= plan.update_every or settling or due:
                self._move(min(at, ends["learning"] - 1))
                self._news = True
        else:
            # Formats stay, but which weights are zero goes on changing.
            self._news |= self.step % plan.update_every == 0 or self.step == phases.total
        if "pretraining" in due:
            self.log.end(due.pop(0), phases.pretraining)
        if settling:
            self.log.warn_if_unmoved()
            self.log.missed = settle(self.formats, self.layers, self.energy, self.sizes.loads, self.sizes.targets)
            self.settled = True
        for name in due:
            self.log.end(name, getattr(phases, name))
        self.frozen |= freezing
        if self.frozen and self.step >= min(ends["learning"] + plan.update_every, phases.total):
            self.norms.end()
        elif freezing:
            self.norms.begin()

    def _move(self, at: int) -> None:
        """Move the formats by what came back since the last time."""
        formats = self.formats
        # Of activations alone: weights' gradients are averaged over the processes already.
        ranks.average_(formats.sums[formats.weights :])
        if isinstance(self.plan, LearnedWidths):
            energy = formats.figures(self.count)[2]
            self.energy = energy if not bool(self.energy.any()) else _FADING * self.energy + (1 - _FADING) * energy
        found = self.rule.update(formats, self.count, at, settled=self.settled)
        if isinstance(self.plan, LearnedWidths):
            self.log.gradients.append(float(found.square().mean().sqrt()))
        formats.sums.zero_()
        self.count = 0

    def after_update(self) -> None:
        """W ← p, p ← Ŵ."""
        self.layers.store(self.step)
        if self._news:
            self._note()

    def renew(self) -> None:
        """p ← Ŵ from the masters, whatever p holds."""
        self.layers.show("masters", anew=True)
        self.layers.store(self.step)

    def _note(self) -> None:
        """Write down what holds now."""
        formats, layers = self.formats, self.layers
        layers.count_nonzeros()
        words, fractions = formats.averages(layers.names)
        self._trace.append(
            self.step,
            word_length=np.rint(words).clip(1, 32).astype(np.int64),
            fraction_length=np.rint(fractions).clip(-126, 126).astype(np.int64),
            nonzero=layers.nonzeros.cpu().numpy() / np.maximum(layers.numel, 1),
        )
        self.widths.append(self.step, np.where(formats.numel > 0, formats.bits, 32))

    # Persistence

    def state_dict(self, optimized: Mapping[str, Tensor]) -> dict[str, Any]:
        """All of it in plain containers, numbers and tensors. Between micro-batches, their gradients too.

        Args:
            optimized: every parameter of the optimizer, by name.
        """
        between = {
            "micro_losses": self.losses.state(),
            "micro_gradients": checkpoint.copied(optimized, (p.grad for p in optimized.values())),
        }
        return {
            "version": state.VERSION,
            "kind": type(self.plan).__name__,
            "step": self.step,
            "count": self.count,
            "frozen": self.frozen,
            "settled": self.settled,
            "layers": list(self.layers.names),
            "names": list(self.formats.names),
            "masters": checkpoint.copied(self.layers.names, self.layers.weights),
            "formats": self.formats.state_dict(),
            "gradients": list(self.log.gradients),
            **{name: tensor.clone() for name, tensor in self._tensors().items()},
            "rule": checkpoint.sealed(self.rule.state_dict()),
            "log": checkpoint.sealed(self.log.state_dict()),
            "trace": checkpoint.sealed(self._trace.state_dict()),
            "widths": checkpoint.sealed(self.widths.state_dict()),
            **(between if self.losses else {}),
        }

    @torch.no_grad()
    def load_state_dict(self, saved: Mapping[str, Any], optimized: Mapping[str, Tensor], *, strict: bool) -> None:
        """Go on from `state_dict`: look at all of it first, then change.

        Raises:
            ValueError: the state is of another kind, version or network.
        """
        state.check(
            saved,
            kind=type(self.plan).__name__,
            layers=self.layers.names,
            names=self.formats.names,
            masters=dict(zip(self.layers.names, self.layers.weights, strict=True)),
            tensors=self._tensors(),
            optimized=optimized,
        )
        self.formats.check_state(saved.get("formats"))
        rule, log = checkpoint.opened(saved["rule"]), checkpoint.opened(saved["log"])
        self.rule.check_state(rule, self.formats)
        self.log.check_state(log)
        trace, widths = state.histories(saved, self._trace, self.widths)

        self.formats.load_state_dict(saved["formats"])
        self._go_on()
        self.rule.load_state_dict(rule, self.formats)
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
        self._go_on_averaging()
        self.renew()

    def _go_on_averaging(self) -> None:
        """Average batch-norm statistics evenly if this is one of the first steps of fine-tuning."""
        self.norms.end()
        if isinstance(self.plan, LearnedWidths) and self.frozen:
            first, total = self.plan.phases.ends["learning"], self.plan.phases.total
            if self.step < min(first + self.plan.update_every, total):
                self.norms.begin(forget=self.step == first)

    def _tensors(self) -> dict[str, Tensor]:
        return {"energy": self.energy, "skipped": self.layers.skipped, "began": torch.from_numpy(self.log.began)}
