"""The one stateful room: masters, hooks on the user's own optimizer, and what a run must remember.

One step flows one way: forward and backward at Ŵ → the loss is noted → p ← W, penalties and normalisation on G →
the policy sees (W, G, loss) and answers formats → the optimizer steps → W ← p → p ← Q(W) → one row of the trace.
"""

import contextlib
import warnings
from collections.abc import Collection, Iterator, Mapping
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from adapt import checkpoint, layering, penalties, persistence
from adapt.activations import Activations
from adapt.biases import Biases
from adapt.decisions import Decisions
from adapt.masters import Masters, View
from adapt.precision import Precision
from adapt.settings import Settings
from adapt.sharding import Whole, whole
from adapt.steps import Steps, unscale
from adapt.switching.policy import Policy, carry
from adapt.trace import Trace
from adapt.views import Views


class Controller:
    """Keeps an optimizer's layers on a fixed-point grid and lets a policy move their precision. `attach` makes it.

    Between steps every layer's parameter holds quantised values; the float32 masters are here. Evaluation sees the
    masters rounded to nearest, training sees them rounded as `rounding` says: hooks on the modules swap the two when
    a module's mode changes. What anyone else writes into a layer's parameter between two steps is overwritten by the
    next, except by `load_state_dict`, whose values become the masters.

    The figures of a step (norms, loss) stay on the device until a layer can switch and are then replayed: decisions
    are those of a look at every step, without waiting for the device in each.

    Attributes:
        optimizer: the optimizer.
        step: optimizer steps begun so far.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        module: nn.Module | None,
        parameters: Mapping[str, Tensor],
        policy: Policy[Any],
        settings: Settings,
    ) -> None:
        chosen = layering.choose(optimizer, parameters, settings.layers)
        layering.check_modules(module, chosen)
        self.optimizer, self.step = optimizer, 0
        self._policy, self._settings = policy, settings
        self._module, self._known = module, dict(parameters)
        self._seed, self._stochastic = settings.seed, settings.rounding == "stochastic"
        self._micro_losses: list[Tensor | float] = []
        self._handles: list[Any] = []
        self._restored = False
        self._views = Views(module, self._adopt)
        self._steps = Steps(
            optimizer,
            before_update=self._before_update,
            after_update=self._after_update,
            undo=self._renew,
            holds_masters=lambda: self._layers.views[0] == "masters",
        )

        self._layers = self._masters(chosen, sums=policy.sums_gradients)
        self._biases: Biases | None = None
        self._activations: Activations | None = None
        self._decisions = Decisions(policy, self._layers.device, trace_every=settings.trace_every)
        self._decisions.go_on(policy.start(Whole(self._layers.weights)), Trace(self._layers.names, self._layers.numel))
        self._follow()
        self._handles = [
            *self._steps.hook(),
            optimizer.register_state_dict_post_hook(self._save_into),
            optimizer.register_load_state_dict_pre_hook(self._load_from),
        ]

    # What a user sees

    @property
    def policy(self) -> Policy[Any]:
        """The policy that decides."""
        return self._policy

    @property
    def precisions(self) -> dict[str, Precision]:
        """The format of every layer, by the weight's name. A layer that a policy runs in float32 has None."""
        return dict(zip(self._layers.names, self._decisions.formats, strict=True))  # type: ignore[arg-type]

    @property
    def activation_precisions(self) -> dict[str, Precision]:
        """The format of every input, output and error that is quantised, by the weight's name and ".input" and so on.

        None where values stay float32. Reading it waits for the device. Empty without `activations`.
        """
        return {} if self._activations is None else self._activations.precisions  # type: ignore[return-value]

    @property
    def masters(self) -> dict[str, Tensor]:
        """The float32 master weights of the layers, by the weight's name: the tensors themselves, not copies."""
        return dict(zip(self._layers.names, self._layers.weights, strict=True))

    @property
    def trace(self) -> Trace:
        """What happened in every step so far. Reading it waits for the device."""
        self._settle()
        self._decisions.close_row(self._layers.nonzeros.cpu().numpy())
        self._decisions.write()
        return self._decisions.trace

    @property
    def skipped(self) -> dict[str, int]:
        """How many gradients of each layer were not finite: they moved neither weights nor statistics."""
        self._settle()
        return dict(zip(self._layers.names, self._decisions.skipped.tolist(), strict=True))

    def observe(self, loss: Tensor | float) -> None:
        """Show the loss of a micro-batch before `step()`; those of several micro-batches are averaged.

        Raises:
            TypeError: the loss is no number.
            ValueError: the loss is not a single number.
        """
        if not isinstance(loss, Tensor | Real):
            raise TypeError(f"loss must be a tensor or a number, got {type(loss).__name__}")
        if isinstance(loss, Tensor) and loss.numel() != 1:
            raise ValueError(f"loss must be a single number, got shape {tuple(loss.shape)}: reduce it first")
        self._micro_losses.append(loss.detach().reshape(()) if isinstance(loss, Tensor) else float(loss))

    def forget_losses(self) -> None:
        """Drop the losses shown since the last step: for gradients that are thrown away, as by a scaler's skip."""
        self._micro_losses.clear()

    def penalty(self) -> Tensor:
        """α‖W‖₁ + β/2·‖W‖₂² + P as it stands, a 0-dim tensor. It has no gradient: the step itself applies it."""
        numel = torch.as_tensor(np.maximum(self._layers.numel, 1), device=self._layers.device)
        words = torch.as_tensor(self._decisions.word_lengths, dtype=torch.float64, device=self._layers.device)
        total = (words * self._layers.nonzeros / numel).mean() / penalties.LONGEST_WORD
        for alpha, weight in zip(self._l1_of_layers, self._layers.weights, strict=True):
            total = total + alpha * whole(weight.abs().sum()) + self._settings.l2 / 2 * whole(weight.square().sum())
        return total.to(torch.float32)

    def master_weights(self) -> contextlib.AbstractContextManager[None]:
        """Within the context the parameters hold the float32 masters, afterwards what they held before."""
        return self._pinned("masters")

    def evaluation_weights(self) -> contextlib.AbstractContextManager[None]:
        """Within the context the parameters hold the masters rounded to nearest, whatever mode the modules are in.

        Needed only where no module was given to `attach`, or where its hooks do not run (`torch.compile`).
        """
        return self._pinned("evaluation")

    @contextlib.contextmanager
    def _pinned(self, view: View) -> Iterator[None]:
        outer = self._views.pin
        with self._views.pinned(view):
            try:
                if self._activations is not None:
                    self._activations.pin(view)
                yield
            finally:
                if self._activations is not None:
                    self._activations.pin(outer)

    @torch.no_grad()
    def quantize_(self) -> None:
        """Round what the parameters hold now to nearest, in place and in the present formats; no master changes.

        For values from elsewhere, such as the mean of masters that weight averaging evaluates.
        """
        for masters in self.banks:
            masters.round_parameters()
        self._views.renew()

    def detach(self, view: View = "evaluation") -> None:
        """Take the hooks away for good. `trace` and `masters` can be read afterwards as before.

        Args:
            view: what the parameters keep: the masters rounded to nearest, or the "masters" themselves.
        """
        if not self._handles:
            return
        for masters in self.banks:
            masters.hand_over(view)
        self._views.renew()
        self._views.remove()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._activations is not None:
            self._activations.remove()

    # Set-up

    @property
    def banks(self) -> list[Masters]:
        """The masters of the layers and, where they are quantised too, of the biases."""
        return [self._layers] if self._biases is None else [self._layers, self._biases.masters]

    @property
    def is_attached(self) -> bool:
        """Whether the hooks are in place: until `detach`."""
        return bool(self._handles)

    def _masters(self, parameters: Mapping[str, Tensor], *, sums: bool, old: Masters | None = None) -> Masters:
        return Masters(parameters, seed=self._seed, stochastic=self._stochastic, sums=sums, old=old)

    def _follow(self) -> None:
        """Let biases, activations and modules follow the present layers, and show Ŵ in the present formats."""
        self._members = sum(len(group["params"]) for group in self.optimizer.param_groups)
        self._frozen = [p for p in layering.optimized(self.optimizer) if not p.requires_grad]
        if self._settings.quantize_biases:
            found = layering.followers(self._known, self._layers.names, self.optimizer)
            tensors = {name: parameter for name, (parameter, _) in found.items()}
            old = None if self._biases is None else self._biases.masters
            leaders = [leader for _, leader in found.values()]
            self._biases = Biases(self._masters(tensors, sums=False, old=old), leaders) if found else None
        if self._settings.activations is not None and self._module is not None:
            before = self._activations
            self._activations = Activations(
                self._module,
                {id(p): i for i, p in enumerate(self._layers.parameters)},
                mode=self._settings.activations,
                errors=self._settings.quantize_errors,
                seed=self._seed,
                stochastic=self._stochastic,
                device=self._layers.device,
                old=before,
            )
            if before is not None:
                before.remove()
        self._use_formats(range(len(self._layers.names)))
        self._renew()
        self._views.hook(self.banks)

    def _adopt(self) -> None:
        """Take in the layers that joined the optimizer, or were unfrozen, since the last look."""
        members = sum(len(group["params"]) for group in self.optimizer.param_groups)
        if members == self._members and not any(p.requires_grad for p in self._frozen):
            return
        self._views.renew()
        names = {id(p): name for name, p in self._known.items()}
        if self._module is not None:
            names |= {id(p): layering.plain_name(name) for name, p in self._module.named_parameters()}
        for parameter in layering.optimized(self.optimizer):
            name = names.setdefault(id(parameter), f"parameter_{len(names)}")
            # A module may have been replaced by one of its name, but the optimizer keeps the parameters of both.
            while self._known.get(name, parameter) is not parameter:
                name += "'"
            self._known[name] = parameter
        old, trace, skipped = self._layers, self.trace, self._decisions.skipped
        found = layering.choose(self.optimizer, self._known, self._settings.layers)
        chosen = dict(zip(old.names, old.parameters, strict=True)) | found
        added = list(chosen)[len(old.names) :]
        self._layers = self._masters(chosen, sums=self._policy.sums_gradients, old=old)
        if added:
            trace.add_layers(added, self._layers.numel[len(old.names) :])
        fresh = self._policy.start(Whole(self._layers.weights))
        kept = {i: i for i in range(len(old.names))}
        self._decisions.go_on(carry(self._decisions.state, fresh, kept), trace)
        self._decisions.skipped[: len(skipped)] = skipped
        self._follow()

    # One step

    @torch.no_grad()
    def _before_update(self, loss: Any) -> None:
        """Between backward and update: p ← W, statistics and treatment of G, and the policy's turn where it is due."""
        if self._views.pin is not None:
            raise RuntimeError(
                "optimizer.step() within master_weights() or evaluation_weights(): leave the context before training"
            )
        if not self._micro_losses and isinstance(loss, Tensor | float | int):
            self.observe(loss)
        self._restored = False
        self._adopt()
        unscale(self.optimizer)
        masters, policy = self._layers, self._policy
        gradients = masters.gradients()
        active = np.array([gradient is not None for gradient in gradients])
        loss_shown = bool(self._micro_losses)
        row = self._decisions.row
        row.nonzeros.copy_(masters.nonzeros)
        self._note_loss(row.loss)
        masters.square(gradients, row.squared, quantize=policy.quantize_gradients, step=self.step)
        if policy.keeps_gradients:
            masters.keep(gradients)
        masters.restore(
            gradients,
            row.squared,
            row.statistics,
            l1=self._l1_of_layers,
            l2=self._settings.l2,
            normalize=policy.normalize_gradients,
        )
        if self._biases is not None:
            self._biases.masters.restore_only()
        self.step += 1
        self._decisions.add(self.step, active, loss_shown)
        if self._decisions.due:
            self._settle()

    @torch.no_grad()
    def _after_update(self) -> None:
        """W ← p, p ← Ŵ."""
        if self._activations is not None:
            self._activations.advance()
        self._store()

    def _note_loss(self, out: Tensor) -> None:
        """The mean of the micro-batches' losses, over all processes, into `out`."""
        micro, self._micro_losses = self._micro_losses, []
        if micro:
            out.fill_(micro[0] if len(micro) == 1 else 0.0)
            for loss in micro if len(micro) > 1 else ():
                out += (loss.to(out) if isinstance(loss, Tensor) else loss) / len(micro)
            _average_over_ranks(out)
        elif self._policy.uses_loss:
            self._decisions.warn(
                "the controller never saw the loss of this step, so the push-up strategy stays where it is: pass a "
                "closure to step(), or call controller.observe(loss) before it"
            )

    def _store(self) -> None:
        for masters in self.banks:
            masters.store(self.step)
        self._views.renew()
        if self._activations is not None:
            self._activations.resume(self.step)

    def _renew(self) -> None:
        """p ← Ŵ from the masters, whatever p holds."""
        with torch.no_grad():
            for masters in self.banks:
                masters.show("masters", anew=True)
            self._store()

    def _settle(self) -> None:
        """Let the policy see the steps that wait, and act on what it decides."""
        before = self._decisions.formats
        ended = self._decisions.settle(
            Whole(self._layers.weights), self._layers.windows, self._l1_of_layers, self._settings.l2
        )
        self._layers.clear(ended)
        if ended or before != self._decisions.formats:
            changed = [i for i, f in enumerate(self._decisions.formats) if f != before[i]]
            self._use_formats({*ended, *changed})

    def _use_formats(self, changed: Collection[int]) -> None:
        """Round to the present formats from now on; biases that follow a changed layer get a new fraction length."""
        formats, words = self._decisions.formats, self._decisions.word_lengths
        self._layers.use(formats)
        if self._activations is not None:
            self._activations.use(formats)
        if self._biases is not None:
            self._biases.use(formats, changed)
        l1 = self._settings.l1
        by_word_length = self._settings.l1_by_word_length
        self._l1_of_layers = penalties.l1_by_word_length(l1, words) if by_word_length else np.full(len(words), l1)

    # Persistence

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs, in plain containers, numbers and tensors. `optimizer.state_dict()` holds it.

        Between the micro-batches of a step it holds the gradients so far too, where their losses were observed.
        """
        return persistence.state_of(self)

    def load_state_dict(self, state: Mapping[str, Any], *, strict: bool = True) -> None:
        """Go on from where `state_dict` was taken. Nothing changes unless all of it fits.

        Args:
            state: what `state_dict` answered.
            strict: refuse a state whose layers are not exactly these. Otherwise layers are matched by name: what the
                state lacks starts afresh, what it has too much is left out, and the trace starts anew.

        Raises:
            ValueError: the state is of another kind, version, policy or network.
        """
        persistence.restore(self, state, strict=strict)

    def _save_into(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        state_dict[checkpoint.KEY] = self.state_dict()
        return state_dict

    def _load_from(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        if checkpoint.KEY not in state_dict:
            if not self._restored:
                warnings.warn(
                    "the optimizer's state was saved without a controller: formats and masters stay as they are",
                    stacklevel=2,
                )
            return state_dict
        checkpoint.check_groups(state_dict, optimizer.param_groups)
        self.load_state_dict(state_dict[checkpoint.KEY])
        return {key: value for key, value in state_dict.items() if key != checkpoint.KEY}


def _average_over_ranks(value: Tensor) -> None:
    """The mean over all processes, in place, so that every rank decides alike."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(value)
        value /= torch.distributed.get_world_size()
