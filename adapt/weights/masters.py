"""Float32 master weights, and the quantised copies that the parameters show."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from adapt import rounding, torch_internals
from adapt.distributed.sharding import ShardedKernels, is_sharded, local, sharded_like
from adapt.kernels import Kernels
from adapt.kernels.stream import is_dense
from adapt.layers.view import View
from adapt.weights.aliasing import Aliases
from adapt.weights.comparison import attributed, differ
from adapt.weights.substitutes import Substitutes

_PROBE_EVERY = 16
"""Steps between two checks for writes that do not change a parameter's version."""


class Masters(ABC):
    """W and Ŵ of some parameters, all on one device.

    Ŵ is written in place into the parameter, which stays autograd's leaf: its gradient is dL/dŴ, so the
    straight-through rule costs nothing. Ŵ is a function of W, the format and, with stochastic rounding, the key of the
    step that wrote it, so every view can be recomputed at any time, bit for bit.

    When other code writes into a parameter in place, or gives it other memory, its master follows: `written`
    detects the write by the parameter's version and address, and `take_writes` finds the changed elements by comparison
    with Ŵ.

    Args:
        parameters: the parameters by name; their present values become the masters.
        old: earlier masters, whose tensors are taken over for parameters in both.

    Attributes:
        names, parameters, weights: the name, the parameter and the master W of each.
        numel: number of elements of each, int64 [parameters].
        views: the view that each parameter holds now; None if writing it was interrupted, so that it is unknown.
        stamps: each parameter's version and address when that view was written; None if it holds something else, as in
            an update.
        is_fresh: whether no step has been made with these masters yet.
        writes_are_hidden: whether other code was found to write without changing the version.
        sharded: whether a parameter is sharded over several processes.
        may_alias: whether the parameters may alias the masters during the optimizer's update, because it updates them
            in place.
        substitutes: other memory for parameters that a waiting graph may hold.

    Raises:
        ValueError: a parameter's memory has gaps or overlaps.
    """

    def __init__(self, parameters: Mapping[str, Tensor], old: "Masters | None" = None) -> None:
        self.names = tuple(parameters)
        self.parameters = list(parameters.values())
        for name, parameter in parameters.items():
            if not is_dense(parameter):
                raise ValueError(
                    f"{name} is a view with gaps or overlaps in memory: make the parameter contiguous first"
                )
        kept = {} if old is None else dict(zip(map(id, old.parameters), old.weights, strict=True))
        self.weights: list[Tensor] = [kept[id(p)] if id(p) in kept else p.detach().clone() for p in self.parameters]
        self.device = self.parameters[0].device
        self.sharded = any(is_sharded(parameter) for parameter in self.parameters)
        kernels = rounding.backend(self.device)
        self._kernels: Kernels = ShardedKernels(kernels) if self.sharded else kernels
        self.may_alias = False
        self._aliases = Aliases(self.parameters, self.weights)
        self.substitutes = Substitutes(self.parameters)
        self._substituted: dict[int, View | None] = {}
        self._before: dict[int, tuple[Tensor, Tensor]] = {}
        self.is_fresh = True
        self.writes_are_hidden = False
        self._steps_unprobed = _PROBE_EVERY
        self.numel = np.array([p.numel() for p in self.parameters], np.int64)
        self.views: list[View | None] = ["masters"] * len(self.parameters)
        self.stamps: list[tuple[int, int] | None] = [self._stamp(i) for i in range(len(self.parameters))]

    @property
    def is_stochastic(self) -> bool:
        """Whether training and evaluation see different roundings of the same master."""
        return False

    @property
    @abstractmethod
    def nonzeros(self) -> Tensor:
        """How many elements of each Ŵ are not zero, float64 [parameters]."""

    @abstractmethod
    def store(self, step: int) -> None:
        """W ← p and p ← Q(W) with the random key of `step`."""

    @abstractmethod
    def round_parameters(self) -> None:
        """Round the parameters' present values to nearest, in place."""

    @abstractmethod
    def _round(self, indices: Sequence[int], outputs: Sequence[Tensor], *, stochastic: bool) -> None:
        """outputs ← Q(W) of the parameters `indices`, with the present keys if stochastic."""

    @abstractmethod
    def _measure(self, index: int) -> None:
        """Update the figures of a master after it was written."""

    def gradients(self) -> list[Tensor | None]:
        """Return each parameter's gradient, laid out in memory like the parameter.

        Raises:
            RuntimeError: a gradient is sparse, or a parameter was moved away from its master.
        """
        self.end_substitution()
        self._require_unmoved(range(len(self.parameters)))
        gradients: list[Tensor | None] = []
        for name, parameter in zip(self.names, self.parameters, strict=True):
            gradient = parameter.grad
            if gradient is not None:
                if gradient.is_sparse:
                    raise RuntimeError(f"{name} has a sparse gradient: make its embedding with sparse=False")
                if gradient.stride() != parameter.stride():
                    gradient = parameter.grad = torch.empty_like(parameter).copy_(gradient)
                if gradient.requires_grad:
                    gradient = gradient.detach()
            gradients.append(gradient)
        return gradients

    @torch.no_grad()
    def show(
        self, view: View, indices: Sequence[int] | None = None, *, rewrite: bool = False, substitute: bool = False
    ) -> None:
        """Make the parameters `indices`, or all, hold this view of their masters.

        Only parameters that hold another view are written, unless `rewrite`.

        Args:
            view: the view.
            indices: the parameters' indices.
            rewrite: write all of them, whatever they hold.
            substitute: leave the parameters' memory alone, because a graph may hold it, and give them other memory
                until `end_substitution`, or until they are to show their own view again. The training view is always
                written into a parameter's own memory.

        Raises:
            RuntimeError: a parameter was moved away from its master.
        """
        chosen = [
            i for i in (range(len(self.views)) if indices is None else indices) if rewrite or self.views[i] != view
        ]
        if not chosen:
            return
        # Needed if an update was interrupted.
        self._aliases.end(chosen)
        self._require_unmoved(chosen)
        if not rewrite:
            self.take_writes(self.written(chosen))
        if self._substituted:
            self.end_substitution([i for i in chosen if rewrite or self._substituted.get(i) == view])
            chosen = [i for i in chosen if rewrite or self.views[i] != view]
        if not rewrite and not self.is_stochastic and view != "masters":
            # Training and evaluation see the same values.
            for i in [i for i in chosen if self.views[i] != "masters" and self.stamps[i] is not None]:
                self.views[i] = view
                chosen.remove(i)
        if substitute and not rewrite and view != "training":
            self._substitute(view, chosen)
        else:
            self._substitute(view, [i for i in chosen if i in self._substituted])
            self._write(view, [i for i in chosen if i not in self._substituted])

    def _write(self, view: View, indices: Sequence[int]) -> None:
        """Write a view into the parameters' own memory."""
        if not indices:
            return
        self._begin_write(indices)
        parameters = [self.parameters[i] for i in indices]
        if view == "masters":
            torch_internals.foreach_copy([local(p) for p in parameters], [local(self.weights[i]) for i in indices])
        else:
            self._round(indices, parameters, stochastic=self.is_stochastic and view == "training")
        for i in indices:
            self.views[i], self.stamps[i] = view, self._stamp(i)
        self.substitutes.count_holders(indices)

    def _begin_write(self, indices: Iterable[int]) -> None:
        """Know nothing of these parameters until they are written: what an interruption leaves there is no write."""
        for i in indices:
            self.views[i] = self.stamps[i] = None

    def _substitute(self, view: View, indices: Sequence[int]) -> None:
        for i in indices:
            # Normal tensors, because a graph may be built on memory that is given in inference mode.
            with torch.inference_mode(False):
                values = self.view_of(i, view)
                values = values.clone() if values is self.weights[i] else values
            self._substituted.setdefault(i, self.views[i])
            self._begin_write([i])
            self.substitutes.begin(i, values)
            self.views[i], self.stamps[i] = view, self._stamp(i)

    @property
    def are_substituted(self) -> bool:
        """Whether a parameter has other memory for now."""
        return bool(self._substituted)

    def end_substitution(self, indices: Iterable[int] | None = None) -> None:
        """Give the parameters `indices`, or all that have other memory, their own memory and view back."""
        for i in list(self._substituted if indices is None else indices):
            if i in self._substituted:
                self.substitutes.end(i)
                self.views[i], self.stamps[i] = self._substituted.pop(i), self._stamp(i)

    @torch.no_grad()
    def written(self, indices: Iterable[int] | None = None) -> set[int]:
        """Return which of the parameters `indices`, or of all, other code has written into since they were shown.

        Nothing waits for the device, except before the first step and after `probe` has found a write.
        """
        chosen = range(len(self.parameters)) if indices is None else indices
        found = {i for i in chosen if self.is_written(i)}
        return found | self._hidden(i for i in chosen if i not in found) if self.looks_closely else found

    @torch.no_grad()
    def take_writes(self, written: Iterable[int]) -> None:
        """Take elements that other code wrote into these parameters as masters, and round the parameters again.

        Unchanged elements keep their masters. Elements that are restored, as after an evaluation of averaged weights,
        get the masters that they had after the latest step.
        """
        for i in written:
            self._require_unmoved([i])
            shown = self.expected(i)
            master = self._with_write(i, shown)
            if i not in self._before:
                self._before[i] = self.weights[i].clone(), shown.clone()
            self.weights[i].copy_(master)
            self.end_substitution([i])
            self._measure(i)
            self.show_again(i)

    @property
    def looks_closely(self) -> bool:
        """Whether to look for writes that leave the version as it is in every pass.

        Before the first step, initialisation often writes so: `weight.data.normal_()`.
        """
        return (self.is_fresh or self.writes_are_hidden) and not self.sharded

    def is_written(self, index: int) -> bool:
        """Return whether other code has written into the parameter, or given it other memory, since it was shown."""
        stamp = self.stamps[index]
        return stamp is not None and stamp != self._stamp(index)

    def _stamp(self, index: int) -> tuple[int, int]:
        parameter = self.parameters[index]
        return parameter._version, 0 if self.sharded else parameter.data_ptr()

    @torch.no_grad()
    def probe(self) -> None:
        """Look for writes that do not change the version, such as those through `.data`; waits for the device.

        The check is made at most every 16 steps. Once it has found a write, `written` looks for such writes every time.
        """
        if self._steps_unprobed >= _PROBE_EVERY and not self.sharded:
            self._steps_unprobed = 0
            hidden = self._hidden(range(len(self.parameters)))
            self.writes_are_hidden |= bool(hidden)
            self.take_writes(hidden)

    def _hidden(self, indices: Iterable[int]) -> set[int]:
        """Return which of these parameters differ from what they should hold."""
        known = [i for i in indices if self.stamps[i] is not None]
        found = torch.stack([self._differs(i) for i in known]).tolist() if known else []
        return {i for i, differs in zip(known, found, strict=True) if differs}

    def _differs(self, index: int) -> Tensor:
        """Return whether the parameter, or a sample of it, differs from its view, bool []."""
        return differ(self.parameters[index].detach(), self.expected(index))

    def expected(self, index: int) -> Tensor:
        """Return what a parameter should hold, given that this is known."""
        view = self.views[index]
        assert view is not None
        return self.view_of(index, view)

    def _with_write(self, index: int, shown: Tensor) -> Tensor:
        """Return a new master that holds what other code wrote into the parameter, which should hold `shown`."""
        weight = self.weights[index]
        before = self._before.get(index, (weight, shown))
        master = weight.clone()
        local(master).copy_(attributed(*map(local, (self.parameters[index], weight, shown, *before))))
        return master

    @contextlib.contextmanager
    def with_writes(self, indices: Iterable[int] | None = None) -> Iterator[None]:
        """Let sharded masters hold what other code wrote into their parameters within the context; change nothing else.

        So a process can save alone what all of them will only take together, in their next pass.

        Args:
            indices: the parameters to look at; None for all.
        """
        kept = {i: self.weights[i] for i in self.written(indices)} if self.sharded else {}
        try:
            for i in kept:
                self.weights[i] = self._with_write(i, self.expected(i))
            yield
        finally:
            for i, weight in kept.items():
                self.weights[i] = weight

    def show_again(self, index: int) -> None:
        """Write the view that a parameter should hold into it, whatever it holds."""
        self.show(self.views[index] or "training", [index], rewrite=True)

    def _record_step(self) -> None:
        """Record that the view of training was just written into all parameters."""
        self.views = ["training"] * len(self.parameters)
        self.stamps = [self._stamp(i) for i in range(len(self.parameters))]
        self.substitutes.forget_holders()
        self._steps_unprobed += 1

    def end_step(self) -> None:
        """Note that a step is done: values from before it can no longer be restored."""
        self._before.clear()
        self.is_fresh = False

    def _forget_views(self) -> None:
        """Record that the parameters no longer hold a view."""
        self.stamps = [None] * len(self.parameters)

    @torch.no_grad()
    def release(self, view: View) -> None:
        """Copy this view of the masters into the parameters for good, even if they were moved."""
        self._aliases.end(range(len(self.parameters)))
        self.end_substitution()
        for index, parameter in enumerate(self.parameters):
            parameter.copy_(self.view_of(index, view))
            self.views[index], self.stamps[index] = view, self._stamp(index)

    def view_of(self, index: int, view: View) -> Tensor:
        """Return this view of a master: a new tensor, or the master itself."""
        if view == "masters":
            return self.weights[index]
        output = torch.empty_like(self.weights[index])
        self._round([index], [output], stochastic=self.is_stochastic and view == "training")
        return output

    def accept(self, index: int) -> bool:
        """Make values that were loaded into a parameter its master, unless they equal a view of the master.

        Returns:
            Whether the master changed.
        """
        is_new = not self.is_view(index)
        if is_new:
            self._before.pop(index, None)
            self.weights[index].copy_(self.parameters[index].detach())
            self._measure(index)
        self.show_again(index)
        return is_new

    def is_view(self, index: int) -> bool:
        """Return whether the parameter holds a view of its master."""
        value, views = self.parameters[index].detach(), get_args(View)
        return any(torch.equal(value, self.view_of(index, view)) for view in views)

    def load(self, index: int, weights: Mapping[str, Tensor]) -> None:
        """Load a parameter's master by its name; the parameter follows with `store`."""
        weight = self.weights[index]
        self._before.pop(index, None)
        weight.copy_(sharded_like(weights[self.names[index]], weight))

    def _alias(self) -> bool:
        """Let the parameters alias the masters until `store`, if possible; return whether they do."""
        if not (self.may_alias and self._aliases.are_possible):
            return False
        self._aliases.begin()
        self.views = ["masters"] * len(self.parameters)
        self._forget_views()
        return True

    def _require_unmoved(self, indices: Iterable[int]) -> None:
        for i in indices:
            now, then = self.parameters[i], self.weights[i]
            if now.device != then.device or now.dtype != then.dtype or now.stride() != then.stride():
                raise RuntimeError(
                    f"{self.names[i]} was moved after its controller was attached, from {then.dtype} on {then.device} "
                    f"with strides {then.stride()} to {now.dtype} on {now.device} with strides {now.stride()}: "
                    "bring the model to its device, type and memory format first, then make the optimizer and attach"
                )
