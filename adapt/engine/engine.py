"""`Engine`: what a user can do with a run that is attached to an optimizer, of whichever kind it is."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from adapt.arguments import check_option
from adapt.engine import rounded_copies
from adapt.engine.driver import Driver
from adapt.engine.losses import training_loss
from adapt.engine.rounded_copies import Module
from adapt.layers import frozen_rounding
from adapt.layers.hooks import WeakHook
from adapt.layers.view import View
from adapt.numerics import Format
from adapt.trace import Trace


class Engine(Driver):
    """The user's handle on an attached run: the common part of `Controller` and `Learner`.

    Between steps every layer's parameter holds quantised values; the run keeps the float32 masters. Evaluation sees the
    masters rounded to nearest, training sees them as training rounds them: hooks on the modules swap the two when a
    module's mode changes.

    Values that other code writes into a layer's parameter between two steps (weight clipping, pruning masks,
    `load_state_dict`) become masters, element by element, and are rounded. In-place operations on the parameter itself
    (`parameter.clamp_()` within `torch.no_grad()`) and new memory (`parameter.data = …`, `vector_to_parameters`) are
    always noticed. Avoid writes that bypass autograd, as `parameter.data.clamp_()` or through NumPy: they are only
    noticed if they show in a sample of the weights, which is taken in every pass before the first step, and later in an
    evaluation, for a checkpoint, and in a step in which a layer can switch. Formats are fitted anew to weights that are
    loaded into the module, or that are written as a whole before the first step.

    Attributes:
        optimizer: the optimizer.
    """

    def __repr__(self) -> str:
        state = f"{self.step} steps" if self.is_attached else f"detached after {self.step} steps"
        words = [form.word_length for name, form in self.formats.items() if name in self.layers]
        bits = sorted({int(word) for array in words for word in array.flat})
        span = "" if not bits else f", {bits[0]} bits" if len(bits) == 1 else f", {bits[0]} to {bits[-1]} bits"
        return f"<{type(self).__name__} of {type(self.optimizer).__name__}: {len(self.layers)} layers{span}, {state}>"

    @property
    def masters(self) -> dict[str, Tensor]:
        """The float32 master weights of the layers, by the weight's name: the tensors themselves, not copies."""
        return dict(zip(self.all_masters[0].names, self.all_masters[0].weights, strict=True))

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
        for part in self._run.hooked_parts:
            part.follow_pin()

    @torch.no_grad()
    def quantize_(self) -> None:
        """Round the parameters' present values to nearest, in place and in the present formats; masters stay.

        For values from elsewhere, such as the mean of masters that weight averaging evaluates. They stay until
        something shows the masters again, as a pass in another mode does: use `evaluation_weights()`.
        """
        for masters in self.all_masters:
            masters.round_parameters()
        self._views.reshard()

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
        names = [name for masters in self.all_masters for name in masters.names]
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
        check_option("view", view, ("evaluation", "masters"))
        if not self.is_attached:
            return
        self._require_no_context("detach()")
        # If no step was made and the masters are handed back, everything is as before attaching.
        kept = self.formats if keep_activations else self._replaced if view == "masters" and not self.step else {}
        self._take_writes()
        self.release(view)
        if self._module is not None:
            frozen_rounding.keep(self._module, kept)
