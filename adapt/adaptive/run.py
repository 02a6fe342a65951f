"""A run whose formats a policy chooses: its state between steps, and what a step does to it."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from adapt import penalties
from adapt.activations import Activations, check_state
from adapt.adaptive.biases import Biases
from adapt.adaptive.decisions import Decisions
from adapt.adaptive.masters import FixedPointMasters
from adapt.adaptive.options import Settings
from adapt.adaptive.persistence import read
from adapt.adaptive.saturation import SaturationWatch
from adapt.adaptive.windows import Windows
from adapt.distributed.sharding import full
from adapt.engine import persistence
from adapt.engine.fused_sgd import TakeOver
from adapt.engine.run import HookedPart, Run
from adapt.execution import Execution
from adapt.kernels import Treatment
from adapt.layers import choice
from adapt.layers.channels import channels_by_layer
from adapt.layers.layer_bits import bounds_of
from adapt.numerics import LONGEST_WORD, SHORTEST_WORD, Bounds, FixedPoint, Format
from adapt.rounding import Noise
from adapt.switching.bounds import ALL
from adapt.switching.configuration import to_dict
from adapt.switching.fixed import Fixed
from adapt.switching.policy import Policy, check_bounds, columns_of, for_layers
from adapt.switching.saved_state import carry, pack
from adapt.trace import Trace
from adapt.trace.description import made_by
from adapt.weights.masters import Masters

_CHECK_EVERY = 16
"""Every so many steps, look at the ranges of the weights, and refit the formats of quantised biases."""


class AdaptiveRun(Run):
    """Masters, formats and history of a run whose formats a policy chooses.

    Args:
        policy: chooses the formats.
        options: the options of `adapt.attach`.
        layers: the layers by name; their present values become the masters.
        module: the module that owns them, if known: it decides where their output channels lie.

    Attributes:
        options: as given. After loading a state, seed and rounding are those of `noise`.
        layer_bits: bounds of the layers' words by pattern, as given or else from a loaded state; None if there are
            none.
        noise: how everything in this run rounds in training.
        layers: masters and copies of the layers' weights.
        windows: the layers' gradients since their last switches.
        biases: masters and formats of the biases, if they are quantised.
        activations: rounds activations, if they are quantised.
        execution: runs products in a short type, if requested.
        decisions: the policy, its state and the trace.
    """

    fuses_sgd = True

    def __init__(
        self, policy: Policy[Any], options: Settings, layers: Mapping[str, Tensor], module: nn.Module | None = None
    ) -> None:
        super().__init__(options.layers)
        self.options = options
        self.noise = Noise(options.seed, stochastic=options.rounding == "stochastic")
        self._module = module
        self.layers = FixedPointMasters(layers, self.noise, channels=channels_by_layer(layers, module))
        self.windows = Windows(sums=policy.sums_gradients)
        self.windows.begin(self.layers.weights)
        self.biases: Biases | None = None
        self.activations: Activations | None = None
        self.execution: Execution | None = None
        self.decisions = Decisions(policy, self.layers.device, trace_every=options.trace_every)
        self._saturation = SaturationWatch(self.layers.names)
        # The initial state, which also is the template that a loaded state must match.
        self._fresh = for_layers(policy, self.layers.names).start(self.layers.shown_to(policy))
        self.layers.check_formats(self._fresh.formats)
        if isinstance(policy, Fixed) and isinstance(policy.precision, Mapping):
            self.layers.check_table(policy.precision)
        self.layer_bits = options.layer_bits
        check_bounds(policy, self._bounds, self.layers.numel.tolist())
        self.decisions.start(self._fresh, self._bounds, Trace(self.layers.names, self.layers.numel, columns_of(policy)))

    @property
    def all_masters(self) -> list[Masters]:
        """The masters of the layers and, if they are quantised too, of the biases."""
        return [self.layers] if self.biases is None else [self.layers, self.biases.masters]

    @property
    def hooked_parts(self) -> list[HookedPart]:
        return [part for part in (self.activations, self.execution) if part is not None]

    @property
    def formats(self) -> dict[str, Format]:
        activations = {} if self.activations is None else self.activations.formats
        biases = {} if self.biases is None else self.biases.masters.formats
        return self.layers.formats | biases | activations

    @property
    def _bounds(self) -> tuple[Bounds, ...]:
        """The fewest and the most bits of each layer's word; empty if the policy alone decides."""
        return bounds_of(self.layer_bits, self.layers.names, default=ALL) if self.layer_bits else ()

    @property
    def trace(self) -> Trace:
        """What happened in every step so far, and the policy and options. Reading it waits for the device."""
        self.flush()
        self.decisions.close_row(self.layers.nonzeros.cpu().numpy(), self.layers.grids.fraction_lengths)
        self.decisions.write()
        # The present policy and options, which may differ from those at the start.
        rounding = "stochastic" if self.noise.stochastic else "nearest"
        options = {**vars(self.options), "seed": self.noise.seed, "rounding": rounding}
        self.decisions.trace.run = made_by(policy=to_dict(self.decisions.policy), **options)
        return self.decisions.trace

    # Which tensors take part

    def join(self, layers: Mapping[str, Tensor]) -> None:
        policy = for_layers(self.decisions.policy, tuple(layers))
        old, trace, skipped = self.layers, self.trace, self.decisions.skipped
        count = len(old.names)
        self.layers = FixedPointMasters(layers, self.noise, old, channels_by_layer(layers, self._module))
        self._saturation = SaturationWatch(self.layers.names)
        self.windows.begin(self.layers.weights[count:])
        if len(layers) > count:
            trace.add_layers(self.layers.names[count:], self.layers.numel[count:])
        self._fresh = policy.start(self.layers.shown_to(policy))
        state = carry(self.decisions.state, self._fresh, {i: i for i in range(count)})
        self.decisions.start(state, self._bounds, trace)
        self.decisions.skipped[: len(skipped)] = skipped

    def update_parts(self, parameters: Mapping[str, Tensor], optimizer: Optimizer, module: nn.Module | None) -> None:
        options = self.options
        names = self.layers.names
        if options.quantize_biases and (found := choice.followers(parameters, names, optimizer, self.included_frozen)):
            tensors = {name: parameter for name, (parameter, _) in found.items()}
            old = None if self.biases is None else self.biases.masters
            masters = FixedPointMasters(tensors, self.noise, old)
            self.biases = Biases(masters, [leader for _, leader in found.values()])
        places = {id(p): i for i, p in enumerate(self.layers.parameters)}
        if options.activations is not None and module is not None:
            before = self.activations
            self.activations = Activations(
                module,
                places,
                mode=options.activations,
                errors=options.quantize_errors,
                noise=self.noise,
                pin=self.pin,
                device=self.layers.device,
                old=before,
            )
            if before is not None:
                before.remove()
        if options.execution is not None and module is not None:
            self.execution = Execution(
                module,
                places,
                execution=options.execution,
                backward=options.execution_backward,
                pin=self.pin,
                old=self.execution,
            )
        self._set_formats(range(len(self.layers.names)))
        self.requantize()

    @torch.no_grad()
    def refit(self, new: Sequence[Collection[int]]) -> list[str]:
        """Restart the policy for layers whose weights were loaded; see `Run.refit`.

        Layers in block floating point or float32 carry on, because these fit any weights.
        """
        decisions, masters = self.decisions, self.layers
        self.flush()
        fixed = [i for i in sorted(new[0]) if isinstance(decisions.formats[i], FixedPoint)]
        sound = [i for i in fixed if bool(torch.isfinite(full(masters.weights[i])).all())]
        if sound:
            decisions.close_row(masters.nonzeros.cpu().numpy(), masters.grids.fraction_lengths)
            decisions.restart(sound, masters.shown_to(decisions.policy))
            self.windows.clear(sound)
            self._set_formats(sound)
        if self.biases is not None and len(new) > 1:
            self.biases.fit(new[1], decisions.formats)
        self.requantize()
        return []

    def change_policy(self, policy: Policy[Any]) -> None:
        """Replace the policy by one of the same class with other hyperparameters, from the next step on."""
        check_bounds(policy, self._bounds, self.layers.numel.tolist())
        self.flush()
        self.trace.add_columns(columns_of(policy))
        self.decisions.change_policy(policy)

    # One step

    def before_update(self, take_over: TakeOver | None) -> bool:
        """Perform one step from the end of backward to the update: see the numbered comments."""
        masters, policy, decisions = self.layers, self.decisions.policy, self.decisions
        if decisions.can_switch:
            for each in self.all_masters:
                each.probe()
        # 1. The figures measured so far and the loss wait on the device for the policy.
        gradients = masters.gradients()
        loss_observed = len(self.losses) > 0
        figures = decisions.slot
        figures.masters.copy_(masters.figures)
        self._note_loss(figures.loss)
        # 2. ‖G‖ and, if the policy asks for it, ΣG += G.
        masters.accumulate(
            gradients,
            self.windows.sums if decisions.can_switch or not policy.samples_gradients else None,
            figures.squared,
            figures.squared_sums,
            quantize=policy.quantize_gradients,
            step=self.step,
        )
        if policy.keeps_gradients:
            self.windows.keep(gradients)
        if self.biases is not None:
            self.biases.masters.restore_only()
        # The penalties depend on the word lengths of the forward pass, whatever the policy decides now. The norms are
        # copied, because settling may reuse their buffer for the next step.
        treatment = Treatment(figures.squared.clone(), self.l1_of_layers, self.l2_of_layers, policy.normalize_gradients)
        # 3. The policy's turn, if a layer may switch in this step.
        self.step += 1
        if self.step % _CHECK_EVERY == 0:
            self._saturation.look(masters.saturated())
        active = np.array([gradient is not None for gradient in gradients])
        decisions.add(self.step, active, masters.grids.fraction_lengths, loss_observed)
        if decisions.due:
            self.flush()
        if self.biases is not None and self.step % _CHECK_EVERY == 0:
            self.biases.fit(range(len(self.biases.masters.names)), decisions.formats)
        # 4. p ← W and treated gradients for the optimizer to use, or the whole update up to p ← Q(W).
        update = take_over(gradients) if take_over is not None and masters.grids.is_fixed else None
        if update is None:
            masters.restore(gradients, treatment)
        else:
            masters.descend(gradients, treatment, update, self.step)
        return update is not None

    def after_update(self) -> None:
        """W ← p and p ← Ŵ, for masters that `before_update` has not updated itself."""
        self._store(ended=True)

    def requantize(self) -> None:
        for masters in self.all_masters:
            masters.show("masters", rewrite=True)
        self._store(ended=False)

    def _store(self, *, ended: bool) -> None:
        for masters in self.all_masters:
            if "masters" in masters.views:
                masters.store(self.step)
        if self.activations is not None:
            self.activations.update_formats(self.step, ended=ended)
        if self.execution is not None:
            # Always, because the formats of block floating point have followed the weights.
            self.execution.set_formats(self.layers.grids.precisions)

    def _note_loss(self, out: Tensor) -> None:
        """Write the step's loss into `out`; NaN if none was observed."""
        if self.losses:
            self.losses.average_into(out)
            return
        out.fill_(math.nan)
        if self.decisions.policy.uses_loss:
            self.decisions.warn(
                "the controller never saw the loss of this step: until it sees one, AdaPT.compact() judges rounding by "
                "the gradients alone, and AdaPT() keeps its push-up strategy. Call controller.observe(loss) before "
                "step(), pass a closure to step() that returns the loss, or let controller.watch(…) see it where a "
                "framework owns the loop"
            )

    def flush(self) -> None:
        """Show the policy the waiting steps, and carry out what it decides."""
        before, policy = self.decisions.formats, self.decisions.policy
        ended = self.decisions.replay(
            self.layers.shown_to(policy),
            self.layers.shown_to(policy, self.windows.sums),
            self.windows.gradients,
            self.l1_of_layers,
            self.options.l2,
            lambda: self.layers.saturated().cpu().numpy(),
        )
        for message in self._saturation.warnings(self.decisions.formats):
            self.decisions.warn(message)
        self.windows.clear(ended)
        if ended or before != self.decisions.formats:
            changed = [i for i, f in enumerate(self.decisions.formats) if f != before[i]]
            self._set_formats({*ended, *changed})

    def _set_formats(self, changed: Collection[int]) -> None:
        """Round to the present formats from now on, and refit the biases that follow a changed layer."""
        formats, words = self.decisions.formats, self.decisions.word_lengths
        self.layers.set_formats(formats)
        if self.activations is not None:
            self.activations.set_formats(formats)
        if self.biases is not None:
            self.biases.set_formats(formats, changed)
        l1 = self.options.l1
        by_word_length = self.options.l1_by_word_length
        self.l1_of_layers = penalties.l1_by_word_length(l1, words) if by_word_length else np.full(len(words), l1)
        self.l2_of_layers = np.full(len(words), self.options.l2)

    # Persistence

    def state_dict(self, optimized: Mapping[str, Tensor]) -> dict[str, Any]:
        trace, masters, windows = self.trace, self.layers, self.windows
        biases, activations = self.biases, self.activations
        gradients = (p.grad for p in optimized.values())
        return {
            "version": persistence.VERSION,
            "step": self.step,
            "seed": self.noise.seed,
            "stochastic": self.noise.stochastic,
            "policy": type(self.decisions.policy).__name__,
            "layers": list(masters.names),
            "state": pack(self.decisions.state),
            "masters": persistence.copied(masters.names, masters.weights),
            "sums": persistence.copied(masters.names, windows.sums),
            "windows": {n: [g.clone() for g in w] for n, w in zip(masters.names, windows.gradients, strict=True)},
            "skipped": dict(zip(masters.names, self.decisions.skipped.tolist(), strict=True)),
            **({"followers": {}, "follower_formats": {}} if biases is None else biases.state_dict()),
            "micro_losses": self.losses.state(),
            "gradients": persistence.copied(optimized, gradients) if self.losses else {},
            "activations": {} if activations is None else activations.state_dict(),
            "trace": persistence.to_bytes(trace.state_dict()),
            persistence.FORMATS: persistence.to_bytes(persistence.pack_formats(self.formats)),
            **persistence.pack_bits(self.layer_bits),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any], optimized: Mapping[str, Tensor], *, strict: bool) -> None:
        masters, decisions, biases, activations = self.layers, self.decisions, self.biases, self.activations
        saved = read(state, decisions.policy, self._fresh, masters, strict=strict)
        state = saved.fields
        gradients = {name: p for name, p in optimized.items() if name in state["gradients"]}
        persistence.check_tensors("gradients", state["gradients"], gradients)
        if biases is not None:
            biases.check(state, strict=strict)
        elif strict and state["followers"]:
            raise ValueError("the precision state holds quantised biases: attach with quantize_biases=True")
        if activations is not None:
            check_state(state["activations"], activations.names, strict=strict)
        elif strict and state["activations"]:
            raise ValueError("the precision state rounds activations: attach with the same activations")
        bits = self.options.layer_bits
        if bits is None:
            bits = persistence.unpack_bits(state, shortest=SHORTEST_WORD, longest=LONGEST_WORD)

        self._saturation = SaturationWatch(masters.names)
        self.step = state["step"]
        self.noise.seed, self.noise.stochastic = state["seed"], state["stochastic"]
        self.layer_bits = bits
        decisions.start(saved.policy_state, self._bounds, saved.trace)
        for i in saved.places:
            name = masters.names[i]
            masters.load(i, state["masters"])
            self.windows.load(i, state["sums"].get(name), state["windows"].get(name, ()), like=masters.weights[i])
            decisions.skipped[i] = state["skipped"].get(name, 0)
        self._set_formats(range(len(masters.names)))
        if biases is not None:
            biases.load(state)
        if activations is not None:
            activations.load_state_dict(state["activations"], strict=strict)
        self.losses.load(state["micro_losses"])
        for name, parameter in gradients.items():
            parameter.grad = state["gradients"][name].to(parameter.device, copy=True)
        self.requantize()
