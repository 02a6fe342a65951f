"""Choose which view of the masters the parameters hold: hooks that follow a module's mode, loading and saving."""

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adapt import torch_internals, user_warnings
from adapt.distributed.sharding import reshard_
from adapt.engine.fsdp_backward import BackwardViews
from adapt.layers.hooks import WeakHook, is_drawn, register_first, remove_all
from adapt.layers.view import Pin, View
from adapt.weights.masters import Masters
from adapt.weights.substitutes import keeping_graphs


class Views:
    """Shows Ŵ as training rounds it to training, and Ŵ rounded to nearest to evaluation and checkpoints.

    If a graph still waits for its backward pass, for example when pseudo-labels are computed between a forward pass and
    `backward()`, a pass in another mode gets its view in separate memory, and the parameters get their own memory back
    when it returns. Otherwise the view is written into the parameters, which keep it until another is needed.

    Args:
        module: the module that owns the parameters; without one, views change only within contexts.
        pin: the view that a context asks for.
        before_forward: called before every forward pass, to add parameters that joined the optimizer.
        take_writes: called to take what other code has written into parameters. Once after values were loaded it gets
            the indices of these parameters in each of the masters.
    """

    def __init__(
        self,
        module: nn.Module | None,
        pin: Pin,
        before_forward: Callable[[], None],
        take_writes: Callable[..., None],
        prepare_saving: Callable[[], None],
    ) -> None:
        self._pin = pin
        self._module, self._before_pass, self._take_writes = module, before_forward, take_writes
        self._prepare_saving = prepare_saving
        self._all_masters: list[Masters] = []
        self._handles: list[Any] = []
        self._places: dict[int, tuple[Masters, int]] = {}
        self._own: dict[nn.Module, dict[str, tuple[Masters, int]]] = {}
        self._inside: dict[nn.Module, list[tuple[Masters, int, nn.Module]]] = {}
        self._running = False
        self._loading: nn.Module | None = None
        self._new: list[set[int]] = []
        self._between: nn.Module | None = None
        self._between_handle: Any = None
        self._end_keeping: Callable[[], None] | None = None
        self._is_watched = False
        self._may_wait = self._graphs_in_evaluation = False
        self._backward = BackwardViews(pin, self.reshard)

    def hook(self, all_masters: Sequence[Masters]) -> None:
        """Follow the modules that own parameters of `all_masters`, and no others, from now on."""
        self.remove()
        self._all_masters = list(all_masters)
        self._new = [set() for _ in all_masters]
        places = self._places = {
            id(p): (masters, i) for masters in all_masters for i, p in enumerate(masters.parameters)
        }
        self._own = {
            module: {name: places[id(p)] for name, p in module._parameters.items() if id(p) in places}
            for module in (() if self._module is None else self._module.modules())
        }
        if self._module is not None:
            after = WeakHook(self._after_forward)
            self._handles.append(self._module.register_forward_hook(after, always_call=True))
        for module, own in self._own.items():
            self._inside[module] = [
                (*place, owner) for owner in module.modules() for place in self._own[owner].values()
            ]
            # Modules without a layer are hooked too, because one may be unfrozen or join the optimizer later.
            if any(True for _ in module.parameters()):
                self._handles.append(register_first(module.register_forward_pre_hook, WeakHook(self.before_forward)))
                before, after = WeakHook(self._before_load), WeakHook(self._after_load)
                self._handles.append(module.register_load_state_dict_pre_hook(before))  # type: ignore[no-untyped-call]
                self._handles.append(module.register_load_state_dict_post_hook(after))  # type: ignore[no-untyped-call]
            if own:
                save = WeakHook(self._after_save)
                self._handles.append(module.register_state_dict_post_hook(save))  # type: ignore[no-untyped-call]
        if any(masters.sharded for masters in all_masters):
            self._handles += self._backward.hook(self._inside)

    def set_module(self, module: nn.Module) -> None:
        """Follow this module's mode, from the next `hook` on."""
        self._module = module

    def remove(self) -> None:
        """Remove the hooks."""
        remove_all(self._handles)
        self._handles.clear()
        self._own, self._inside = {}, {}
        self._end_pass()

    def after_step(self) -> bool:
        """Note that a step is done, so no graph waits any more. Return whether a hook saw a pass before the step."""
        self._end_pass()
        self._is_watched, self._may_wait = self._may_wait, False
        if self._graphs_in_evaluation:
            for masters in self._all_masters:
                masters.substitutes.count_holders()
        return self._is_watched

    @contextlib.contextmanager
    def pinned(self, view: View) -> Iterator[None]:
        """Make every parameter hold `view` within the context, whatever the modules' mode; restore it afterwards."""
        before = self.shown
        outer, self._pin.view = self._pin.view, view
        end_keeping = None
        try:
            self._take_writes()
            for masters in self._all_masters:
                masters.probe()
            substitute = self._graphs_wait((masters, None) for masters in self._all_masters)
            for masters in self._all_masters:
                masters.show(view, substitute=substitute)
            if any(masters.are_substituted for masters in self._all_masters):
                end_keeping = keeping_graphs()
            self.reshard()
            yield
        finally:
            self._pin.view = outer
            if end_keeping is not None:
                end_keeping()
            self._take_writes()
            self.show(before)

    @property
    def shown(self) -> list[list[View | None]]:
        """The view that each parameter of each of the masters holds now, None if it is unknown."""
        return [list(masters.views) for masters in self._all_masters]

    def show(self, shown: Sequence[Sequence[View | None]]) -> None:
        """Show the views that `shown` returned earlier."""
        for masters, views in zip(self._all_masters, shown, strict=True):
            for view in set(views):
                if view is not None:
                    masters.show(view, [i for i, v in enumerate(views) if v == view])
        self.reshard()

    def reshard(self) -> None:
        """Make FSDP discard the gathered weights, which are those that the parameters held before."""
        if self._module is not None and any(masters.sharded for masters in self._all_masters):
            reshard_(self._module)

    def before_forward(self, module: nn.Module, args: Any) -> None:
        """Show each layer in the view for the mode of its own module."""
        if is_drawn():
            return
        builds_graphs = torch.is_grad_enabled()
        if self._pin.view is not None:
            self._may_wait |= builds_graphs
            return
        # The optimizer is checked only once, not for every module inside.
        outermost = module is self._module or module is self._between
        if outermost or not self._running:
            with torch_internals.outside_of_transforms():
                self._begin_pass(module)
        self._running |= outermost
        stale: list[tuple[Masters, int, View]] = []
        for masters, index, owner in self._inside.get(module, ()):
            view: View = "training" if owner.training else "evaluation"
            if masters.views[index] != view:
                stale.append((masters, index, view))
        if stale:
            # Such graphs may outlive the step, for example when the outputs of a validation are kept.
            self._graphs_in_evaluation |= builds_graphs and any(view == "evaluation" for _, _, view in stale)
            with torch_internals.outside_of_transforms():
                self._show(stale, module)
        self._may_wait |= builds_graphs

    def _begin_pass(self, module: nn.Module) -> None:
        """Notice, before a pass begins, what has happened since the latest one."""
        self._end_pass()
        if self._loading is not None:
            # An exception interrupted the loading.
            self._end_load()
        written = any(masters.is_written(index) for masters, index, _ in self._inside.get(module, ()))
        if written or any(masters.looks_closely for masters in self._all_masters):
            self._take_writes()
        self._before_pass()

    def _show(self, changes: Sequence[tuple[Masters, int, View]], module: nn.Module) -> None:
        """Change the views of parameters for `module`, which is about to run."""
        for masters in self._all_masters:
            masters.probe()
        substitute = self._graphs_wait((masters, [index]) for masters, index, _ in changes)
        for masters, index, view in changes:
            masters.show(view, [index], substitute=substitute)
        if self._between is None and any(masters.are_substituted for masters in self._all_masters):
            self._between, self._running = module, True
            self._between_handle = module.register_forward_hook(WeakHook(self._after_between), always_call=True)
            self._end_keeping = keeping_graphs()
        self.reshard()

    def _graphs_wait(self, parameters: Iterable[tuple[Masters, list[int] | None]]) -> bool:
        """Return whether a graph that waits for its backward pass may hold one of these parameters.

        If hooks do not run, as in a compiled module, any pass may have built one.
        """
        if self._is_watched and not self._may_wait:
            return False
        return any(masters.substitutes.are_needed(indices) for masters, indices in parameters)

    def _after_forward(self, module: nn.Module, args: Any, output: Any) -> None:
        self._running = False

    def _after_between(self, module: nn.Module, args: Any, output: Any) -> None:
        self._give_back()

    def _give_back(self) -> None:
        """Give the parameters their own memory back after a pass between another's forward and backward."""
        for masters in self._all_masters:
            masters.end_substitution()
        if self._end_keeping is not None:
            self._end_keeping()
        self._end_keeping, self._between, self._running = None, None, False

    def _end_pass(self) -> None:
        """End a pass whose closing hooks an exception may have skipped, and remove the hook that `_show` registered.

        A hook cannot remove itself: after an exception torch is still iterating over the module's hooks.
        """
        self._running = False
        if self._between_handle is not None:
            self._give_back()
            self._between_handle.remove()
            self._between_handle = None

    def _before_load(self, module: nn.Module, *_: Any) -> None:
        """Remember the outermost module that is loaded: the modules inside have this hook too."""
        if self._loading is None:
            self._loading = module

    def _after_load(self, module: nn.Module, keys: Any) -> None:
        """Make the loaded values masters, and call `take_writes` when the outermost module is loaded."""
        for name, (masters, index) in self._own.get(module, {}).items():
            if module._parameters.get(name, masters.parameters[index]) is not masters.parameters[index]:
                user_warnings.warn(
                    f"{masters.names[index]} is another parameter now, as after load_state_dict(…, assign=True), but "
                    "the optimizer still updates the former: load without assign, or load first, then make the "
                    "optimizer and attach"
                )
            elif masters.accept(index):
                self._new[self._all_masters.index(masters)].add(index)
        if module is self._loading:
            self._end_load()

    def _end_load(self) -> None:
        self._loading = None
        if any(self._new):
            new, self._new = self._new, [set() for _ in self._all_masters]
            self._take_writes(new)

    def _after_save(self, module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
        """Save what evaluation sees, whatever the module's mode."""
        if self._pin.view is not None:
            return
        # Matched by identity: pruning renames a parameter, and a parametrisation moves it into its own module.
        inside = {prefix + name: self._places.get(id(p)) for name, p in _own_or_new(module, self._own)}
        for name, place in inside.items():
            if place is None:
                continue
            masters, index = place
            if masters.written([index]):
                self._prepare_saving()
            masters.probe()
            saved = state.get(name)
            is_shown = masters.views[index] == "evaluation" and not masters.is_written(index)
            # With keep_vars the caller asks for the parameter itself.
            if not is_shown and isinstance(saved, Tensor) and not saved.requires_grad:
                with masters.with_writes([index]):
                    state[name] = masters.view_of(index, "evaluation")


def _own_or_new(module: nn.Module, known: Collection[nn.Module]) -> Iterator[tuple[str, Tensor]]:
    """Yield the module's own parameters, and those of modules inside it that are new and so have no hooks."""
    for name, parameter in module._parameters.items():
        if parameter is not None:
            yield name, parameter
    for path, child in module.named_children():
        if child not in known:
            yield from ((f"{path}.{name}", parameter) for name, parameter in _own_or_new(child, known))
