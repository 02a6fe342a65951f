"""The one stateful room: a run's state, and hooks on the user's own optimizer and modules that move it.

One step flows one way: forward and backward at Ŵ → the loss is noted → the policy sees (W, G, loss) and answers
formats → p ← W, penalties and normalisation on G → the optimizer steps → W ← p → p ← Q(W) → one row of the trace.
Torch's SGD need not step on the layers: what it would do to W happens in one pass with the rounding after it.
"""

import contextlib
from collections.abc import Collection, Iterator, Mapping
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from adapt import notices
from adapt.distributed.sharding import whole
from adapt.layers import layering
from adapt.layers.hooks import remove_all
from adapt.layers.members import Members
from adapt.numerics import LONGEST_WORD, Precision
from adapt.run import Run, checkpoint
from adapt.run.settings import Settings
from adapt.run.steps import Steps, unscale
from adapt.switching.policy import Policy
from adapt.trace import Trace
from adapt.weights.descent import Descent
from adapt.weights.masters import Masters, View
from adapt.weights.views import Views


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
        self.optimizer = optimizer
        self._module = module
        self._members = Members(optimizer, module, parameters)
        self._run = self._begin(policy, settings, chosen)
        self._views = Views(module, self._adopt)
        self._steps = Steps(
            optimizer,
            before_update=self._before_update,
            after_update=self._after_update,
            undo=self._renew,
        )
        self._restored = False
        try:
            self._follow()
        except BaseException:
            self._give_back()
            raise
        self._handles = [
            *self._steps.hook(),
            optimizer.register_state_dict_post_hook(self._save_into),
            optimizer.register_load_state_dict_pre_hook(self._load_from),
        ]

    def _begin(self, policy: Policy[Any], settings: Settings, layers: Mapping[str, Tensor]) -> Run:
        """The run to keep; its layers are these."""
        return Run(policy, settings, layers)

    def __reduce__(self) -> Any:
        raise TypeError(
            f"a {type(self).__name__} belongs to its optimizer and modules and cannot be copied or pickled: copy or "
            "save what it keeps by its state_dict(), or the optimizer's"
        )

    # What a user sees

    @property
    def policy(self) -> Policy[Any]:
        """The policy that decides. One of the same kind, with other hyperparameters, may take its place between steps.

        Raises:
            TypeError: the new policy is of another kind, or needs other tensors of every layer.
        """
        return self._run.policy

    @policy.setter
    def policy(self, policy: Policy[Any]) -> None:
        before = self._run.policy
        needs = ("sums_gradients", "samples_gradients", "keeps_gradients")
        if type(policy) is not type(before) or any(getattr(policy, n) != getattr(before, n) for n in needs):
            raise TypeError(f"policy must be one like {before!r}, whose state it takes over, got {policy!r}")
        self._run.go_on_by(policy)

    @property
    def precisions(self) -> dict[str, Precision]:
        """The format of every layer, by the weight's name. A layer that a policy runs in float32 has None.

        Of a layer in block floating point, the format in which its weights now are.
        """
        return dict(zip(self._run.layers.names, self._run.layers.grids.precisions, strict=True))  # type: ignore[arg-type]

    @property
    def activation_precisions(self) -> dict[str, Precision]:
        """The format of every input, output and error that is quantised, by the weight's name and ".input" and so on.

        None where values stay float32. Reading it waits for the device. Empty without `activations`.
        """
        return {} if self._run.activations is None else self._run.activations.precisions  # type: ignore[return-value]

    @property
    def layers(self) -> dict[str, Tensor]:
        """The parameters whose precision moves, by name."""
        return dict(zip(self._run.layers.names, self._run.layers.parameters, strict=True))

    @property
    def masters(self) -> dict[str, Tensor]:
        """The float32 master weights of the layers, by the weight's name: the tensors themselves, not copies."""
        return dict(zip(self._run.layers.names, self._run.layers.weights, strict=True))

    @property
    def step(self) -> int:
        """Optimizer steps begun so far."""
        return self._run.step

    @property
    def trace(self) -> Trace:
        """What happened in every step so far. Reading it waits for the device."""
        return self._run.trace

    @property
    def skipped(self) -> dict[str, int]:
        """How many gradients of each layer were not finite: zero to the optimizer, and left out of the statistics."""
        self._run.settle()
        return dict(zip(self._run.layers.names, self._run.decisions.skipped.tolist(), strict=True))

    def observe(self, loss: Tensor | float) -> None:
        """Show the loss of a micro-batch before `step()`; those of several micro-batches are averaged.

        After `detach` there is nobody to show it to.

        Raises:
            TypeError: the loss is no number.
            ValueError: the loss is not a single number.
        """
        if self.is_attached:
            self._run.losses.observe(loss)

    def forget_losses(self) -> None:
        """Drop the losses shown since the last step: for gradients that are thrown away, as by a scaler's skip."""
        self._run.losses.forget()

    def penalty(self) -> Tensor:
        """α‖W‖₁ + β/2·‖W‖₂² + P as it stands, a 0-dim tensor. It has no gradient: the step itself applies it."""
        numel = torch.as_tensor(np.maximum(self._run.layers.numel, 1), device=self._run.layers.device)
        words = torch.as_tensor(self._run.decisions.word_lengths, dtype=torch.float64, device=self._run.layers.device)
        total = (words * self._run.layers.nonzeros / numel).mean() / LONGEST_WORD
        for alpha, weight in zip(self._run.l1_of_layers, self._run.layers.weights, strict=True):
            total = total + alpha * whole(weight.abs().sum()) + self._run.settings.l2 / 2 * whole(weight.square().sum())
        return total.to(torch.float32)

    def master_weights(self) -> contextlib.AbstractContextManager[None]:
        """Within the context the parameters hold the float32 masters, afterwards what they held before."""
        return self._pinned("masters")

    def evaluation_weights(self) -> contextlib.AbstractContextManager[None]:
        """Within the context the parameters hold the masters rounded to nearest, whatever mode the modules are in.

        For whoever copies a model or reads its parameters between two steps. Passes of a module in evaluation mode see
        them anyway, unless no module was given to `attach` or its hooks do not run: in a module that was compiled in
        place, or after attaching.
        """
        return self._pinned("evaluation")

    @contextlib.contextmanager
    def _pinned(self, view: View) -> Iterator[None]:
        self._require_attached()
        outer = self._views.pin
        with self._views.pinned(view):
            try:
                for follower in self._run.hooked:
                    follower.pin(view)
                yield
            finally:
                for follower in self._run.hooked:
                    follower.pin(outer)

    @torch.no_grad()
    def quantize_(self) -> None:
        """Round what the parameters hold now to nearest, in place and in the present formats; no master changes.

        For values from elsewhere, such as the mean of masters that weight averaging evaluates. They stay as long as
        nothing shows the masters' own values again, as a pass in another mode does: within `evaluation_weights()`.
        """
        for masters in self.banks:
            masters.round_parameters()
        self._views.renew()

    def detach(self, view: View = "evaluation") -> None:
        """Take the hooks away for good. `trace` and `masters` can be read afterwards as before.

        Args:
            view: what the parameters keep: the masters rounded to nearest, or the "masters" themselves.

        Raises:
            ValueError: there is no such view.
            RuntimeError: within `master_weights()` or `evaluation_weights()`.
        """
        if view not in ("evaluation", "masters"):
            raise ValueError(f'view must be "evaluation" or "masters", got {view!r}')
        if not self.is_attached:
            return
        self._require_no_context("detach()")
        for masters in self.banks:
            masters.hand_over(view)
        self._views.renew()
        self._views.remove()
        remove_all(self._handles)
        self._handles.clear()
        self._descent.forget()
        for follower in self._run.hooked:
            follower.remove()

    def _give_back(self) -> None:
        """Leave the parameters and modules as they were before."""
        for masters in self.banks:
            masters.hand_over("masters")
        self._views.remove()
        for follower in self._run.hooked:
            follower.remove()

    # Following optimizer and modules

    @property
    def banks(self) -> list[Masters]:
        """The masters of the layers and, where they are quantised too, of the biases."""
        return self._run.banks

    @property
    def is_attached(self) -> bool:
        """Whether the hooks are in place: until `detach`."""
        return bool(self._handles)

    def _require_attached(self) -> None:
        if not self.is_attached:
            raise RuntimeError(
                "this controller was detached: its masters stay in controller.masters, but it keeps the parameters no "
                "longer, so attach a new one"
            )

    def _require_no_context(self, what: str) -> None:
        if self._views.pin is not None:
            raise RuntimeError(f"{what} within master_weights() or evaluation_weights(): leave the context first")

    def _follow(self) -> None:
        """Let biases, activations and modules follow the present layers."""
        self._members.look()
        with_biases = self._run.settings.quantize_biases
        names = self._run.layers.names
        biases = layering.followers(self._members.known, names, self.optimizer) if with_biases else {}
        with torch.no_grad():
            self._run.follow(biases, self._module)
        for masters in self.banks:
            masters.lends = layering.updates_in_place(self.optimizer)
        self._descent = Descent(self.optimizer, self._run.layers.parameters, self._steps.is_watched)
        self._views.hook(self.banks)
        self._views.renew()

    def _adopt(self) -> None:
        """Take in the layers that joined the optimizer, or were unfrozen, since the last look."""
        if self._members.changed:
            self._take_in()

    # Whoever notices may run in inference mode, but what begins here is written in training.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _take_in(self, frozen: Collection[str] = ()) -> None:
        """Take in what joined, and of what is frozen the layers of these names."""
        self._views.renew()
        self._members.name()
        present = self._run.layers
        found = layering.choose(self.optimizer, self._members.known, self._run.settings.layers, frozen)
        self._run.join(dict(zip(present.names, present.parameters, strict=True)) | found)
        self._follow()

    @torch.no_grad()
    def _before_update(self, loss: Any) -> None:
        """Between backward and update; `loss` is what the closure answered, where there was one."""
        if not self.is_attached:
            # The closure detached.
            return
        self._require_no_context("optimizer.step()")
        if not self._run.losses and isinstance(loss, Tensor | Real):
            self.observe(loss)  # type: ignore[arg-type]
        self._restored = False
        self._descent.forget()
        self._adopt()
        unscale(self.optimizer)
        if self._run.before_update(self._descent.take_over):
            self._descent.hide()

    @torch.no_grad()
    def _after_update(self) -> None:
        self._descent.show()
        self._run.after_update()
        self._views.renew()

    @torch.no_grad()
    def _renew(self) -> None:
        self._run.renew()
        self._views.renew()

    # Persistence

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs, in plain containers, numbers and tensors. `optimizer.state_dict()` holds it.

        Between the micro-batches of a step it holds the gradients so far too, where their losses were observed.
        """
        return self._run.state_dict(self._members.present)

    def load_state_dict(self, state: Mapping[str, Any], *, strict: bool = True) -> None:
        """Go on from where `state_dict` was taken. Nothing changes unless all of it fits.

        Seed and rounding are those of the state, as the noise is that of the run that wrote it; the policy stays.

        Args:
            state: what `state_dict` answered.
            strict: refuse a state whose layers are not exactly these. Otherwise layers are matched by name: what the
                state lacks starts afresh, what it has too much is left out, and the trace starts anew.

        Raises:
            ValueError: the state is of another kind, version, policy or network.
            RuntimeError: the controller was detached, or is within `master_weights()` or `evaluation_weights()`.
        """
        self._require_attached()
        self._require_no_context("loading a state")
        self._adopt()
        self._await(state)
        self._run.load_state_dict(state, self._members.present, strict=strict)
        self._restored = True
        self._steps.forget()
        self._views.renew()

    def _await(self, state: Mapping[str, Any]) -> None:
        """Take in the layers of a state that are frozen here, as where a run resumes that had unfrozen them."""
        layers = state.get("layers") if isinstance(state, Mapping) else None
        wanted = {name for name in layers if isinstance(name, str)} if isinstance(layers, list) else set()
        frozen = {name for name, p in self._members.present.items() if name in wanted and not p.requires_grad}
        if frozen - set(self._run.layers.names):
            self._take_in(frozen)

    def _save_into(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        state_dict[checkpoint.KEY] = self.state_dict()
        return state_dict

    def _load_from(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        if checkpoint.KEY not in state_dict:
            if not self._restored:
                notices.warn(
                    "the optimizer's state was saved without a controller: formats and masters stay as they are",
                )
            return state_dict
        checkpoint.check_groups(state_dict, optimizer.param_groups)
        self.load_state_dict(state_dict[checkpoint.KEY])
        return {key: value for key, value in state_dict.items() if key != checkpoint.KEY}
