"""Hooks on the user's own optimizer and modules that drive a run from step to step.

One step flows one way: forward and backward at Ŵ → the loss is noted → the run sees (W, G, loss) and chooses formats
→ p ← W, penalties and normalisation on G → the optimizer steps → W ← p → p ← Q(W) → one row of the trace. If the
optimizer is torch's SGD, the run goes from the gradients to Q(W) in one pass.
"""

import contextlib
import functools
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim import Optimizer

from adapt import user_warnings
from adapt.engine import persistence, rounded_copies
from adapt.engine.first_step import FirstStep
from adapt.engine.fused_sgd import FusedSGD
from adapt.engine.losses import training_loss
from adapt.engine.members import Members
from adapt.engine.rounded_copies import Module
from adapt.engine.run import Run
from adapt.engine.steps import Steps, unscale
from adapt.engine.views import Views
from adapt.layers import choice, frozen_rounding, optimizers
from adapt.layers.hooks import WeakHook, remove_all
from adapt.layers.view import View
from adapt.numerics import Format
from adapt.trace import Trace
from adapt.weights.masters import Masters


class Engine:
    """Drives a run through hooks on an optimizer and its modules. Users see its subclasses `Controller` and `Learner`.

    Between steps every layer's parameter holds quantised values; the run keeps the float32 masters. Evaluation sees the
    masters rounded to nearest, training sees them as training rounds them: hooks on the modules swap the two when a
    module's mode changes.

    Values that other code writes into a layer's parameter between two steps (weight clipping, pruning masks,
    `load_state_dict`) become masters, element by element, and are rounded. In-place operations on the parameter itself
    (`parameter.clamp_()` within `torch.no_grad()`) and new memory (`parameter.data = …`, `vector_to_parameters`) are
    always noticed. Avoid writes that bypass autograd, as `parameter.data.clamp_()` or through NumPy: they are only
    noticed if they show in a sample of the weights, which is taken in every pass before the first step, and later in an
    evaluation, for a checkpoint, and in a step in which a layer can switch. Formats begin anew with weights that are
    loaded into the module, or that are written as a whole before the first step.

    Attributes:
        optimizer: the optimizer.
    """

    def __init__(
        self, optimizer: Optimizer, module: nn.Module | None, parameters: Mapping[str, Tensor], run: Run
    ) -> None:
        self.optimizer = optimizer
        self._module, self._run = module, run
        self._members = Members(optimizer, module, parameters)
        self._views = Views(module, run.pin, self._before_pass, self._take_writes)
        self._steps = Steps(
            optimizer,
            before_update=self._before_update,
            after_update=self._after_update,
            undo=self._renew,
        )
        self._first_step = FirstStep(optimizer, *min(self.layers.items(), key=lambda layer: layer[1].numel()))
        self._fused: FusedSGD | None = None
        self._restored = False
        self._unfit: dict[str, None] = {}
        self._is_blind_known = False
        self._replaced: dict[str, Format] = {}
        self._handles: list[Any] = []
        self._search: Any = None

    def attach(self) -> None:
        """Register the hooks and round the weights. A call that fails must be followed by `give_up`."""
        self._handles += self._steps.hook()
        self._handles.append(self.optimizer.register_state_dict_post_hook(self._save_into))
        self._handles.append(self.optimizer.register_load_state_dict_pre_hook(self._load_from))
        self._first_step.watch()
        self._follow()
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
            self._views.follow(module)
            self._views.hook(self.banks)
            self._views.before_forward(module, args)

    def _warn_if_blind(self) -> None:
        """Warn once if the hooks saw no forward pass before a step, as happens after `torch.compile`."""
        if self._search is not None:
            self._search.remove()
        if self._is_blind_known or not self.banks[0].is_stochastic:
            return
        if any(parameter.grad is not None for parameter in self.banks[0].parameters):
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

    def __repr__(self) -> str:
        state = f"{self.step} steps" if self.is_attached else f"detached after {self.step} steps"
        words = [form.word_length for name, form in self.formats.items() if name in self.layers]
        bits = sorted({int(word) for array in words for word in array.flat})
        span = "" if not bits else f", {bits[0]} bits" if len(bits) == 1 else f", {bits[0]} to {bits[-1]} bits"
        return f"<{type(self).__name__} of {type(self.optimizer).__name__}: {len(self.layers)} layers{span}, {state}>"

    # The user's interface

    @property
    def layers(self) -> dict[str, Tensor]:
        """The parameters of the layers, by name."""
        return dict(zip(self.banks[0].names, self.banks[0].parameters, strict=True))

    @property
    def masters(self) -> dict[str, Tensor]:
        """The float32 master weights of the layers, by the weight's name: the tensors themselves, not copies."""
        return dict(zip(self.banks[0].names, self.banks[0].weights, strict=True))

    @property
    def formats(self) -> dict[str, Format]:
        """The number format of everything that is quantised, as evaluation uses it.

        Keys are parameter names for weights, biases and norm parameters, and the module's path plus ".input" or
        ".output" for activations. Float32 tensors are left out. Reading this may wait for the device.
        """
        return self._run.formats

    @property
    def step(self) -> int:
        """The number of optimizer steps begun so far."""
        return self._run.step

    @property
    def trace(self) -> Trace:
        """What happened in every step so far. Reading it waits for the device."""
        return self._run.trace

    def observe(self, loss: Tensor | float) -> None:
        """Pass the loss of a micro-batch to the run before `step()`; losses of several micro-batches are averaged.

        After `detach` this does nothing.

        Raises:
            TypeError: the loss is neither a tensor nor a number.
            ValueError: the loss is a tensor with more than one element, or none.
        """
        if self.is_attached:
            self._run.losses.observe(loss)

    def watch(self, loss: Callable[..., Any]) -> Callable[..., Any]:
        """Observe every training loss that a loss module or function returns, for loops that a framework owns.

        Results without a gradient, as in evaluation, are ignored. After `detach` nothing is observed.

        Args:
            loss: a module, such as `nn.CrossEntropyLoss()` or a model that returns {"loss": …}, which gets a forward
                hook; or a function. It must return the mean over the batch.

        Returns:
            The module itself, or a function to use in place of the given one.

        Raises:
            TypeError: the loss is neither a module nor a function.
            RuntimeError: the controller was detached.
        """
        self._require_attached()
        if isinstance(loss, nn.Module):
            self._handles.append(loss.register_forward_hook(WeakHook(self._see)))
            return loss
        if not callable(loss) or isinstance(loss, type):
            raise TypeError(f"loss must be a loss module or function, got {loss!r}: a number goes to observe(loss)")

        @functools.wraps(loss)
        def watched(*args: Any, **kwargs: Any) -> Any:
            result = loss(*args, **kwargs)
            self._see(None, args, result)
            return result

        return watched

    def _see(self, module: nn.Module | None, args: Any, result: Any) -> None:
        shown = training_loss(result)
        if shown is not None and (module is None or module.training):
            self.observe(shown)

    def forget_losses(self) -> None:
        """Drop the losses observed since the last step, for gradients that are discarded, as when a scaler skips."""
        self._run.losses.forget()

    def master_weights(self) -> contextlib.AbstractContextManager[None]:
        """Return a context within which the parameters hold the float32 masters."""
        return self._pinned("masters")

    def evaluation_weights(self) -> contextlib.AbstractContextManager[None]:
        """Return a context within which the parameters hold the masters rounded to nearest, in every mode.

        Use it to copy a model or to read its parameters between two steps. Modules in evaluation mode compute with
        these weights anyway, with two exceptions: the module's hooks do not run, because it was compiled in place or
        after attaching; or `attach` was given no module and none with all the layers ran before the first step.
        """
        return self._pinned("evaluation")

    @contextlib.contextmanager
    def _pinned(self, view: View) -> Iterator[None]:
        self._require_attached()
        self._is_blind_known = True
        try:
            with self._views.pinned(view):
                self._follow_pin()
                yield
        finally:
            self._follow_pin()

    def _follow_pin(self) -> None:
        for part in self._run.hooked:
            part.follow_pin()

    @torch.no_grad()
    def quantize_(self) -> None:
        """Round the parameters' present values to nearest, in place and in the present formats; masters stay.

        For values from elsewhere, such as the mean of masters that weight averaging evaluates. They stay until
        something shows the masters again, as a pass in another mode does: use `evaluation_weights()`.
        """
        for masters in self.banks:
            masters.round_parameters()
        self._views.renew()

    def quantized(self, module: Module) -> Module:
        """Return a quantised copy of a module for evaluation, such as an average of the weights.

        Its parameters are rounded to nearest in the present formats, and so are its activations if the run rounds
        them. Neither the run nor the module changes.

        Args:
            module: an averaged copy of the network (`AveragedModel`, timm's `ModelEmaV3`), or the network itself while
                it holds the average.

        Raises:
            ValueError: the module lacks a parameter of the run.
        """
        names = [name for masters in self.banks for name in masters.names]
        return rounded_copies.quantized(module, names, self.formats)

    def detach(self, view: View = "evaluation", *, keep_activations: bool = False) -> None:
        """Remove the hooks for good. `trace` and `masters` can still be read.

        Args:
            view: what the parameters hold afterwards: "evaluation", the masters rounded to nearest, or "masters".
            keep_activations: keep rounding the activations to nearest in their present formats, through hooks that are
                copied and pickled with the module; otherwise activations are float32 from now on. The next controller
                attached to the module replaces these hooks.

        Raises:
            ValueError: there is no such view.
            RuntimeError: called within `master_weights()` or `evaluation_weights()`.
        """
        if view not in ("evaluation", "masters"):
            raise ValueError(f'view must be "evaluation" or "masters", got {view!r}')
        if not self.is_attached:
            return
        self._require_no_context("detach()")
        # If no step was made and the masters are handed back, everything is as before attaching.
        kept = self.formats if keep_activations else self._replaced if view == "masters" and not self.step else {}
        self._take_writes()
        self._release(view)
        if self._module is not None:
            frozen_rounding.keep(self._module, kept)

    def give_up(self) -> None:
        """Give the weights back and remove the hooks, after attaching has failed.

        The parameters are not read: whatever failed may have been in the middle of writing them.
        """
        self._release("masters")

    def _release(self, view: View) -> None:
        """Set the parameters to this view, and remove the hooks."""
        remove_all(self._handles)
        self._handles.clear()
        for masters in self.banks:
            masters.hand_over(view)
        self._views.renew()
        self._views.remove()
        self._first_step.forget()
        if self._search is not None:
            self._search.remove()
        if self._fused is not None:
            self._fused.forget()
        for part in self._run.hooked:
            part.remove()

    # Following optimizer and modules

    @property
    def banks(self) -> list[Masters]:
        """The masters of the layers and, if they are quantised too, of the biases."""
        return self._run.banks

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
    def _follow(self) -> None:
        """Update the run, the fused update and the hooks on the modules to match the present layers."""
        self._members.look()
        self._run.follow(self._members.known, self.optimizer, self._module)
        for masters in self.banks:
            masters.may_alias = optimizers.updates_in_place(self.optimizer)
        if self._run.fuses_sgd:
            self._fused = FusedSGD(self.optimizer, self.banks[0].parameters, self._steps.is_watched)
        self._views.hook(self.banks)
        self._views.renew()

    def _adopt(self) -> None:
        """Add layers that have joined the optimizer or were unfrozen."""
        if self._members.changed:
            self._take_in()

    @torch.inference_mode(False)
    @torch.no_grad()
    def _take_writes(self, loaded: Sequence[Collection[int]] = ()) -> None:
        """Take what other code wrote into the parameters as masters, and fit formats to weights that are new.

        New weights were loaded into the module, or replaced before the first step in any other way. They keep formats
        that came with the optimizer's state.

        Args:
            loaded: the indices of the parameters that were just loaded, in each bank.
        """
        if self._restored:
            for masters in self.banks:
                masters.put_back()
        new = [set(indices) for indices in loaded or [()] * len(self.banks)]
        if not (self._restored or self._run.step):
            for masters, indices in zip(self.banks, new, strict=True):
                indices |= masters.replaced()
        # All of them, because formats that begin anew overwrite every parameter.
        written = [masters.take_writes() for masters in self.banks]
        if self._restored:
            return
        if any(new):
            shown = self._views.shown
            self._unfit |= dict.fromkeys(self._run.begin_anew(new))
            self._views.show(shown)
        elif any(written):
            self._unfit |= dict.fromkeys(self._run.misfits(written[0]))

    def _before_pass(self) -> None:
        self._warn_if_unfit()
        self._adopt()

    def _warn_if_unfit(self) -> None:
        """Warn of loaded weights that keep formats of earlier ones. Not on loading: their own state may follow."""
        if self._unfit:
            names, self._unfit = list(self._unfit), {}
            more = ", …" if len(names) > 4 else ""
            user_warnings.warn(
                f"weights were loaded or written after attaching, but the formats of {', '.join(names[:4])}{more} still "
                "fit the earlier weights: load the weights first, then attach"
            )

    # A forward pass may notice a new layer in inference mode, but the tensors created here are written in training.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _take_in(self, frozen: Collection[str] = ()) -> None:
        """Add layers that have joined, and the frozen layers with these names. All writes must have been taken."""
        self._views.renew()
        self._members.name()
        found = choice.choose(self.optimizer, self._members.known, self._run.choice, frozen)
        self._run.join(self.layers | found)
        self._follow()

    @torch.no_grad()
    def _before_update(self, loss: Any) -> None:
        """Run between backward and update; `loss` is the closure's result, None if there is no closure."""
        if not self.is_attached:
            # The closure called `detach`.
            return
        self._require_no_context("optimizer.step()")
        self._first_step.begin()
        if not self._run.losses and isinstance(loss, Tensor | Real):
            self.observe(loss)  # type: ignore[arg-type]
        self._take_writes()
        self._warn_if_unfit()
        self._restored = False
        self._adopt()
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
        for masters in self.banks:
            masters.end_step()
        if not self._views.after_step():
            self._warn_if_blind()
        self._views.renew()

    @torch.no_grad()
    def _renew(self) -> None:
        self._run.renew()
        self._views.renew()

    # Persistence

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to resume the run, in plain containers, numbers and tensors.

        `optimizer.state_dict()` includes it. Between the micro-batches of a step it holds the gradients so far, if
        their losses were observed.
        """
        if self.is_attached:
            self._take_writes()
            for masters in self.banks:
                masters.probe()
        return self._run.state_dict(self._members.present)

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
        self._adopt()
        self._take_in_frozen(state)
        self._run.load_state_dict(state, self._members.present, strict=strict)
        self._restored = True
        self._unfit = {}
        self._steps.forget()
        self._views.renew()

    def _take_in_frozen(self, state: Mapping[str, Any]) -> None:
        """Add layers that are frozen here, but were unfrozen in the run that wrote the state."""
        fields = [state.get(field) for field in ("layers", "followers")] if isinstance(state, Mapping) else []
        wanted = {
            name for field in fields if isinstance(field, list | Mapping) for name in field if isinstance(name, str)
        }
        frozen = {name for name, p in self._members.present.items() if name in wanted and not p.requires_grad}
        if frozen - {name for masters in self.banks for name in masters.names} - self._run.awaited:
            self._run.awaited |= frozen
            self._take_in(frozen)

    def _save_into(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        state_dict[persistence.KEY] = self.state_dict()
        return state_dict

    def _load_from(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        if persistence.KEY not in state_dict:
            if not self._restored:
                user_warnings.warn(
                    "the optimizer's state was saved without a controller: masters and formats stay as they are; only "
                    "weights that are loaded into the module get new formats",
                )
            return state_dict
        persistence.check_groups(state_dict, optimizer.param_groups)
        self.load_state_dict(state_dict[persistence.KEY])
        return {key: value for key, value in state_dict.items() if key != persistence.KEY}
