"""Hooks on the user's own optimizer and modules that drive a run from step to step.

One step flows one way: forward and backward at Ŵ → the loss is noted → the run sees (W, G, loss) and chooses formats
→ p ← W, penalties and normalisation on G → the optimizer steps → W ← p → p ← Q(W) → one row of the trace. If the
optimizer is torch's SGD, the run goes from the gradients to Q(W) in one pass.
"""

import contextlib
import weakref
from collections.abc import Collection, Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim import Optimizer

from adapt import user_warnings
from adapt.engine import persistence
from adapt.engine.first_step import FirstStep
from adapt.engine.foreign_writes import ForeignWrites
from adapt.engine.fused_sgd import FusedSGD
from adapt.engine.known_parameters import KnownParameters
from adapt.engine.run import Run
from adapt.engine.steps import Steps, unscale
from adapt.engine.views import Views
from adapt.layers import choice, frozen_rounding, optimizers
from adapt.layers.hooks import WeakHook, remove_all
from adapt.layers.view import View
from adapt.numerics import Format
from adapt.weights.masters import Masters


class Driver:
    """Drives a run through hooks on an optimizer and its modules.

    Args:
        optimizer: the optimizer whose steps drive the run.
        module: the module that owns the parameters, if known.
        parameters: the parameters by name.
        run: the run.
    """

    def __init__(
        self, optimizer: Optimizer, module: nn.Module | None, parameters: Mapping[str, Tensor], run: Run
    ) -> None:
        self.optimizer = optimizer
        self._module, self._run = module, run
        self._parameters = KnownParameters(optimizer, module, parameters)
        self._writes = ForeignWrites(run)
        self._views = Views(module, run.pin, self._before_pass, self._take_writes, self._prepare_saving)
        self._steps = Steps(
            optimizer, before_update=self._before_update, after_update=self._after_update, undo=self._requantize
        )
        self._first_step = FirstStep(optimizer, *min(self.layers.items(), key=lambda layer: layer[1].numel()))
        self._fused: FusedSGD | None = None
        self._is_blind_known = False
        self._replaced: dict[str, Format] = {}
        self._handles: list[Any] = []
        self._search: Any = None

    def attach(self) -> None:
        """Register the hooks and round the weights. If this fails, the caller must `release` the masters."""
        self._handles += self._steps.hook()
        self._handles.append(self.optimizer.register_state_dict_post_hook(self._save_into))
        self._handles.append(self.optimizer.register_load_state_dict_pre_hook(self._load_from))
        self._first_step.watch()
        self._update_parts()
        if self._module is not None:
            self._replaced = frozen_rounding.remove(self._module)
        else:
            self._search = register_module_forward_pre_hook(WeakHook(self._find_module))
            # A global hook must not outlive the engine.
            weakref.finalize(self, self._search.remove)

    def _find_module(self, module: nn.Module, args: Any) -> None:
        """Follow the mode of the first module that runs and has all the layers, if `attach` was given no module."""
        inside = set(map(id, module.parameters()))
        if self.is_attached and all(id(p) in inside for p in self.layers.values()):
            self._search.remove()
            self._module = module
            self._views.set_module(module)
            self._views.hook(self.all_masters)
            self._views.before_forward(module, args)

    def _warn_if_blind(self) -> None:
        """Warn once if the hooks saw no forward pass before a step, as happens after `torch.compile`."""
        if self._search is not None:
            self._search.remove()
        if self._is_blind_known or not self.all_masters[0].is_stochastic:
            return
        if any(parameter.grad is not None for parameter in self.all_masters[0].parameters):
            self._is_blind_known = True
            user_warnings.warn(
                "the controller saw no forward pass of a module with all the layers in this step, as happens if the "
                "module was compiled after attaching: in evaluation mode it would use the weights as training rounds "
                "them. Evaluate within controller.evaluation_weights(), or pass the (compiled) module to attach()"
            )

    def __reduce__(self) -> Any:
        raise TypeError(
            f"a {type(self).__name__} belongs to its optimizer and modules and cannot be copied or pickled: copy or "
            "save what it keeps by its state_dict(), or the optimizer's"
        )

    # Which layers take part

    @property
    def layers(self) -> dict[str, Tensor]:
        """The parameters of the layers, by name."""
        return dict(zip(self.all_masters[0].names, self.all_masters[0].parameters, strict=True))

    @property
    def all_masters(self) -> list[Masters]:
        """The masters of the layers and, if they are quantised too, of the biases."""
        return self._run.all_masters

    @property
    def is_attached(self) -> bool:
        """Whether the hooks are in place; False after `detach`."""
        return bool(self._handles)

    def _require_attached(self) -> None:
        if not self.is_attached:
            raise RuntimeError(
                "this controller was detached and no longer manages the parameters: attach a new one (the old masters "
                "remain in controller.masters)"
            )

    def _require_no_context(self, what: str) -> None:
        if self._run.pin.view is not None:
            raise RuntimeError(f"{what} within master_weights() or evaluation_weights(): leave the context first")

    @torch.no_grad()
    def _update_parts(self) -> None:
        """Update the run, the fused update and the hooks on the modules to match the present layers."""
        self._parameters.remember()
        self._run.update_parts(self._parameters.by_name, self.optimizer, self._module)
        for masters in self.all_masters:
            masters.may_alias = optimizers.updates_in_place(self.optimizer)
        if self._run.fuses_sgd:
            self._fused = FusedSGD(self.optimizer, self.all_masters[0].parameters, self._steps.is_watched)
        self._views.hook(self.all_masters)
        self._views.reshard()

    def _before_pass(self) -> None:
        self._writes.warn_if_unfit()
        self._add_new_layers()

    def _add_new_layers(self) -> None:
        """Add layers that have joined the optimizer or were unfrozen."""
        if self._parameters.changed:
            self._add_layers()

    # A forward pass may notice a new layer in inference mode, but the tensors created here are written in training.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _add_layers(self, frozen: Collection[str] = ()) -> None:
        """Add layers that have joined, and the frozen layers with these names. All writes must have been taken."""
        self._views.reshard()
        self._parameters.name_all()
        found = choice.choose(self.optimizer, self._parameters.by_name, self._run.choice, frozen)
        self._run.join(self.layers | found)
        self._update_parts()

    def _add_frozen_layers(self, state: Mapping[str, Any]) -> None:
        """Add layers that are frozen here, but were unfrozen in the run that wrote the state."""
        fields = [state.get(field) for field in ("layers", "followers")] if isinstance(state, Mapping) else []
        wanted = {
            name for field in fields if isinstance(field, list | Mapping) for name in field if isinstance(name, str)
        }
        frozen = {name for name, p in self._parameters.present.items() if name in wanted and not p.requires_grad}
        if frozen - {name for masters in self.all_masters for name in masters.names} - self._run.included_frozen:
            self._run.included_frozen |= frozen
            self._add_layers(frozen)

    def _take_writes(self, loaded: Sequence[Collection[int]] = ()) -> None:
        self._writes.take(self._views, loaded)

    def _prepare_saving(self) -> None:
        """Take writes, unless layers are sharded: a process may save alone, and all must take them together.

        Where formats may have to begin anew, as before the first step, all processes must save together.
        """
        if self._writes.may_refit or not any(masters.sharded for masters in self.all_masters):
            self._take_writes()

    # One step

    @torch.no_grad()
    def _before_update(self, loss: Any) -> None:
        """Run between backward and update; `loss` is the closure's result, None if there is no closure."""
        if not self.is_attached:
            # The closure called `detach`.
            return
        self._require_no_context("optimizer.step()")
        self._first_step.begin()
        if not self._run.losses and isinstance(loss, Tensor | Real):
            self._run.losses.observe(loss)  # type: ignore[arg-type]
        self._take_writes()
        self._writes.warn_if_unfit()
        self._writes.begin_step()
        self._add_new_layers()
        unscale(self.optimizer)
        if self._fused is None:
            self._run.before_update(None)
            return
        self._fused.forget()
        if self._run.before_update(self._fused.take_over):
            self._fused.hide()

    @torch.no_grad()
    def _after_update(self) -> None:
        if self._fused is not None:
            self._fused.show()
        self._run.after_update()
        for masters in self.all_masters:
            masters.end_step()
        if not self._views.after_step():
            self._warn_if_blind()
        self._views.reshard()

    @torch.no_grad()
    def _requantize(self) -> None:
        self._run.requantize()
        self._views.reshard()

    # The end

    def release(self, view: View) -> None:
        """Make the parameters hold this view, without reading them, and remove the hooks."""
        remove_all(self._handles)
        self._handles.clear()
        for masters in self.all_masters:
            masters.release(view)
        self._views.reshard()
        self._views.remove()
        self._first_step.forget()
        if self._search is not None:
            self._search.remove()
        if self._fused is not None:
            self._fused.forget()
        for part in self._run.hooked_parts:
            part.remove()

    # Persistence

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to resume the run, in plain containers, numbers and tensors.

        `optimizer.state_dict()` includes it. Between the micro-batches of a step it holds the gradients so far, if
        their losses were observed.
        """
        with contextlib.ExitStack() as stack:
            if self.is_attached:
                self._prepare_saving()
                for masters in self.all_masters:
                    masters.probe()
                    stack.enter_context(masters.with_writes())
            return self._run.state_dict(self._parameters.present)

    def load_state_dict(self, state: Mapping[str, Any], *, strict: bool = True) -> None:
        """Resume from what `state_dict` returned. Nothing changes unless all of it fits.

        Seed and rounding are taken from the state, so that the noise continues as in the run that wrote it; the policy
        stays.

        Args:
            state: what `state_dict` returned.
            strict: refuse a state whose layers are not exactly these. Otherwise layers are matched by name: layers
                that the state lacks start afresh, its surplus layers are ignored, and if names differ the trace is
                empty again.

        Raises:
            ValueError: the state is of another kind, version, policy or network.
            RuntimeError: the controller was detached, or this is called within `master_weights()` or
                `evaluation_weights()`.
        """
        self._require_attached()
        self._require_no_context("loading a state")
        self._take_writes()
        self._add_new_layers()
        self._add_frozen_layers(state)
        self._run.load_state_dict(state, self._parameters.present, strict=strict)
        self._writes.keep_formats((*state["layers"], *state.get("followers", ())))
        self._steps.forget()
        self._views.reshard()

    def _save_into(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        state_dict[persistence.KEY] = self.state_dict()
        return state_dict

    def _load_from(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        if persistence.KEY not in state_dict:
            if not self._writes.follow_state:
                user_warnings.warn(
                    "the optimizer's state was saved without a controller: masters and formats stay as they are; only "
                    "weights that are loaded into the module get new formats"
                )
            return state_dict
        persistence.check_groups(state_dict, optimizer.param_groups)
        self.load_state_dict(state_dict[persistence.KEY])
        return {key: value for key, value in state_dict.items() if key != persistence.KEY}
