"""What a run must remember between two steps, and what a step does to it."""

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adapt import penalties
from adapt.activations import Activations, check_state
from adapt.distributed.sharding import Whole
from adapt.execution import Execution
from adapt.kernels import Treatment
from adapt.run import checkpoint
from adapt.run.biases import Biases
from adapt.run.decisions import Decisions
from adapt.run.losses import MicroLosses
from adapt.run.settings import Settings
from adapt.run.windows import Windows
from adapt.switching.policy import Policy, carry, columns_of, pack, unpack
from adapt.trace import Trace
from adapt.trace.archive import release_of
from adapt.weights.descent import TakeOver
from adapt.weights.masters import Masters


class Run:
    """The state of a controller, and what one optimizer step does to it. It knows neither optimizer nor hooks.

    Args:
        policy: what decides on the formats.
        settings: the options of `adapt.attach`.
        layers: the layers by name; their values now are the masters.

    Attributes:
        layers: masters and copies of the layers' weights.
        windows: the layers' gradients since their last switches.
        biases: those of the biases, where they are quantised.
        activations: what rounds activations, where they are quantised.
        execution: what runs products in a short type, where that is wanted.
        decisions: the policy's state and the trace.
        step: optimizer steps begun so far.
        losses: those shown since the last step.
    """

    def __init__(self, policy: Policy[Any], settings: Settings, layers: Mapping[str, Tensor]) -> None:
        self.policy, self.settings, self.step = policy, settings, 0
        self.seed, self.stochastic = settings.seed, settings.rounding == "stochastic"
        self.losses = MicroLosses()
        self.layers = self._masters(layers)
        self.windows = Windows(sums=policy.sums_gradients)
        self.windows.begin(self.layers.weights)
        self.biases: Biases | None = None
        self.activations: Activations | None = None
        self.execution: Execution | None = None
        self.decisions = Decisions(policy, self.layers.device, trace_every=settings.trace_every)
        # The first state, and the pattern that a loaded one must fit.
        self._fresh = policy.start(Whole(self.layers.weights))
        self.decisions.go_on(self._fresh, Trace(self.layers.names, self.layers.numel, columns_of(policy)))

    @property
    def banks(self) -> list[Masters]:
        """The masters of the layers and, where they are quantised too, of the biases."""
        return [self.layers] if self.biases is None else [self.layers, self.biases.masters]

    @property
    def hooked(self) -> list[Activations | Execution]:
        """What acts on the module's layers by hooks."""
        return [part for part in (self.activations, self.execution) if part is not None]

    @property
    def trace(self) -> Trace:
        """What happened in every step so far. Reading it waits for the device."""
        self.settle()
        self.decisions.close_row(self.layers.nonzeros.cpu().numpy(), self.layers.grids.fraction_lengths)
        self.decisions.write()
        return self.decisions.trace

    # Who takes part

    def _masters(self, parameters: Mapping[str, Tensor], old: Masters | None = None) -> Masters:
        return Masters(parameters, seed=self.seed, stochastic=self.stochastic, old=old)

    def join(self, layers: Mapping[str, Tensor]) -> None:
        """Take in layers that are new among `layers`, which begins with those that are there."""
        old, trace, skipped = self.layers, self.trace, self.decisions.skipped
        count = len(old.names)
        self.layers = self._masters(layers, old)
        self.windows.begin(self.layers.weights[count:])
        if len(layers) > count:
            trace.add_layers(self.layers.names[count:], self.layers.numel[count:])
        self._fresh = self.policy.start(Whole(self.layers.weights))
        self.decisions.go_on(carry(self.decisions.state, self._fresh, {i: i for i in range(count)}), trace)
        self.decisions.skipped[: len(skipped)] = skipped

    def follow(self, biases: Mapping[str, tuple[Tensor, int]], module: nn.Module | None) -> None:
        """Let biases, each with the index of its layer, and the module's hooks follow the present layers."""
        if biases:
            tensors = {name: parameter for name, (parameter, _) in biases.items()}
            old = None if self.biases is None else self.biases.masters
            self.biases = Biases(self._masters(tensors, old), [leader for _, leader in biases.values()])
        places = {id(p): i for i, p in enumerate(self.layers.parameters)}
        if self.settings.activations is not None and module is not None:
            before = self.activations
            self.activations = Activations(
                module,
                places,
                mode=self.settings.activations,
                errors=self.settings.quantize_errors,
                seed=self.seed,
                stochastic=self.stochastic,
                device=self.layers.device,
                old=before,
            )
            if before is not None:
                before.remove()
        if self.settings.execution is not None and module is not None:
            self.execution = Execution(
                module,
                places,
                execution=self.settings.execution,
                backward=self.settings.execution_backward,
                old=self.execution,
            )
        self._use_formats(range(len(self.layers.names)))
        self.renew()

    def go_on_by(self, policy: Policy[Any]) -> None:
        """Let a policy of the same kind, with other hyperparameters, decide from the next step on."""
        self.settle()
        self.policy = policy
        self.trace.add_columns(columns_of(policy))
        self.decisions.go_on_by(policy)

    # One step

    def before_update(self, take_over: TakeOver) -> bool:
        """Statistics of G, the policy's turn where it is due, then p ← W and treatment of G; or all up to p ← Ŵ.

        Args:
            take_over: answers what the optimizer is about to do with the layers' gradients, where it need not do so.

        Returns:
            Whether the layers are updated.
        """
        masters, policy = self.layers, self.policy
        gradients = masters.gradients()
        loss_shown = len(self.losses) > 0
        slot = self.decisions.slot
        slot.masters.copy_(masters.figures)
        self._note_loss(slot.loss)
        masters.accumulate(
            gradients,
            self.windows.sums if self.decisions.can_switch or not policy.samples_gradients else None,
            slot.squared,
            slot.squared_sums,
            quantize=policy.quantize_gradients,
            step=self.step,
        )
        if policy.keeps_gradients:
            self.windows.keep(gradients)
        if self.biases is not None:
            self.biases.masters.restore_only()
        # Penalties are those of the words that the forward pass ran in, whatever the policy decides now.
        treatment = Treatment(slot.squared, self.l1_of_layers, self.l2_of_layers, policy.normalize_gradients)
        self.step += 1
        active = np.array([gradient is not None for gradient in gradients])
        self.decisions.add(self.step, active, masters.grids.fraction_lengths, loss_shown)
        if self.decisions.due:
            self.settle()
        update = take_over(gradients) if masters.grids.is_fixed else None
        if update is None:
            masters.restore(gradients, treatment)
        else:
            masters.descend(gradients, treatment, update, self.step)
        return update is not None

    def after_update(self) -> None:
        """W ← p, p ← Ŵ, where that is not done."""
        if self.activations is not None:
            self.activations.advance()
        self._store()

    def renew(self) -> None:
        """p ← Ŵ from the masters, whatever p holds."""
        for masters in self.banks:
            masters.show("masters", anew=True)
        self._store()

    def _store(self) -> None:
        for masters in self.banks:
            if "masters" in masters.views:
                masters.store(self.step)
        if self.activations is not None:
            self.activations.resume(self.step)
        if self.execution is not None:
            # Block floating point has followed the weights.
            self.execution.use(self.layers.grids.precisions)
            self.execution.resume()

    def _note_loss(self, out: Tensor) -> None:
        """The step's loss into `out`; NaN where it was not shown."""
        if self.losses:
            self.losses.average_into(out)
            return
        out.fill_(math.nan)
        if self.policy.uses_loss:
            self.decisions.warn(
                "the controller never saw the loss of this step, so the push-up strategy stays where it is: pass a "
                "closure to step(), or call controller.observe(loss) before it"
            )

    def settle(self) -> None:
        """Let the policy see the steps that wait, and act on what it decides."""
        before = self.decisions.formats
        ended = self.decisions.settle(
            Whole(self.layers.weights),
            Whole(self.windows.sums),
            self.windows.gradients,
            self.l1_of_layers,
            self.settings.l2,
        )
        self.windows.clear(ended)
        if ended or before != self.decisions.formats:
            changed = [i for i, f in enumerate(self.decisions.formats) if f != before[i]]
            self._use_formats({*ended, *changed})

    def _use_formats(self, changed: Collection[int]) -> None:
        """Round to the present formats from now on; biases that follow a changed layer get a new fraction length."""
        formats, words = self.decisions.formats, self.decisions.word_lengths
        self.layers.use(formats)
        if self.activations is not None:
            self.activations.use(formats)
        if self.execution is not None:
            self.execution.use(self.layers.grids.precisions)
        if self.biases is not None:
            self.biases.use(formats, changed)
        l1 = self.settings.l1
        by_word_length = self.settings.l1_by_word_length
        self.l1_of_layers = penalties.l1_by_word_length(l1, words) if by_word_length else np.full(len(words), l1)
        self.l2_of_layers = np.full(len(words), self.settings.l2)

    # Persistence

    def state_dict(self, optimized: Mapping[str, Tensor]) -> dict[str, Any]:
        """All of it in plain containers, numbers and tensors. Between micro-batches, their gradients too.

        Args:
            optimized: every parameter of the optimizer, by name.
        """
        trace, masters, windows = self.trace, self.layers, self.windows
        biases, activations = self.biases, self.activations
        gradients = (p.grad for p in optimized.values())
        return {
            "version": checkpoint.VERSION,
            "step": self.step,
            "seed": self.seed,
            "stochastic": self.stochastic,
            "policy": type(self.policy).__name__,
            "layers": list(masters.names),
            "state": pack(self.decisions.state),
            "masters": checkpoint.copied(masters.names, masters.weights),
            "sums": checkpoint.copied(masters.names, windows.sums),
            "windows": {n: [g.clone() for g in w] for n, w in zip(masters.names, windows.gradients, strict=True)},
            "skipped": dict(zip(masters.names, self.decisions.skipped.tolist(), strict=True)),
            **({"followers": {}, "follower_formats": {}} if biases is None else biases.state_dict()),
            "micro_losses": self.losses.state(),
            "gradients": checkpoint.copied(optimized, gradients) if self.losses else {},
            "activations": {} if activations is None else activations.state_dict(),
            "trace": checkpoint.sealed(trace.state_dict()),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any], optimized: Mapping[str, Tensor], *, strict: bool) -> None:
        """Go on from `state_dict`: look at all of it first, then change.

        Raises:
            ValueError: the state is of another kind, version, policy or network.
        """
        policy, masters, decisions = self.policy, self.layers, self.decisions
        biases, activations = self.biases, self.activations
        names = masters.names
        checkpoint.check(
            state,
            policy=type(policy).__name__,
            weights=dict(zip(names, masters.weights, strict=True)),
            sums=policy.sums_gradients,
            strict=strict,
        )
        old_names = list(state["layers"])
        saved_trace = checkpoint.opened(state["trace"])
        old = unpack(state["state"], self._fresh, len(old_names), release=release_of(saved_trace))
        places = {i: old_names.index(name) for i, name in enumerate(names) if name in old_names}
        # Of a state that has all layers nothing fresh remains: no weight needs a look, not even one that is not finite.
        fresh = self._fresh if len(places) == len(names) else policy.start(Whole(masters.weights))
        policy_state = carry(old, fresh, places)
        if policy.keeps_gradients:
            checkpoint.check_windows(state["windows"], dict(zip(old_names, old.gradients.tolist(), strict=True)))
        # A layer that joined late is the last of its run, but not of one that begins with it.
        same = sorted(old_names) == sorted(names)
        trace = Trace.from_state_dict(saved_trace) if same else Trace(names, masters.numel)
        trace.add_columns(columns_of(policy))
        if trace.layers != names:
            trace = trace.reordered(names)
        if len(trace) and trace.step[-1] > state["step"]:
            raise ValueError(f"the precision state is of step {state['step']}, but its trace goes to {trace.step[-1]}")
        gradients = {name: p for name, p in optimized.items() if name in state["gradients"]}
        checkpoint.check_tensors("gradients", state["gradients"], gradients)
        if biases is not None:
            biases.check(state, strict=strict)
        elif strict and state["followers"]:
            raise ValueError("the precision state holds quantised biases: attach with quantize_biases=True")
        if activations is not None:
            check_state(state["activations"], activations.names, strict=strict)
        elif strict and state["activations"]:
            raise ValueError("the precision state rounds activations: attach with the same activations")

        self.step, self.seed, self.stochastic = state["step"], state["seed"], state["stochastic"]
        decisions.go_on(policy_state, trace)
        for i in places:
            name = names[i]
            masters.load(i, state["masters"])
            self.windows.load(i, state["sums"].get(name), state["windows"].get(name, ()), like=masters.weights[i])
            decisions.skipped[i] = state["skipped"].get(name, 0)
        self._use_formats(range(len(names)))
        if biases is not None:
            biases.load(state)
        for bank in self.banks:
            bank.seed, bank.stochastic = self.seed, self.stochastic
        if activations is not None:
            activations.seed, activations.stochastic = self.seed, self.stochastic
            activations.load_state_dict(state["activations"], strict=strict)
        self.losses.load(state["micro_losses"])
        for name, parameter in gradients.items():
            parameter.grad = state["gradients"][name].to(parameter.device, copy=True)
        self.renew()
