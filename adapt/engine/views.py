"""Which view of the masters a module's parameters hold: hooks that follow the module's mode, loading and saving."""

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from adapt.distributed.sharding import reshard_
from adapt.layers.hooks import WeakHook, remove_all
from adapt.layers.tracing import is_drawn
from adapt.layers.view import Pin, View
from adapt.weights.masters import Masters


class Views:
    """Shows training Ŵ as training rounds it, and evaluation and checkpoints Ŵ rounded to nearest.

    Args:
        module: the module that owns the parameters; without one, views change only within contexts.
        pin: the view that a context asks for.
        before_forward: called before every forward pass, to take in parameters that joined the optimizer.
    """

    def __init__(self, module: nn.Module | None, pin: Pin, before_forward: Callable[[], None]) -> None:
        self._pin = pin
        self._module, self._notice = module, before_forward
        self._banks: list[Masters] = []
        self._handles: list[Any] = []
        self._places: dict[int, tuple[Masters, int]] = {}
        self._own: dict[nn.Module, dict[str, tuple[Masters, int]]] = {}
        self._inside: dict[nn.Module, list[tuple[Masters, int, nn.Module]]] = {}
        self._running = False

    def hook(self, banks: Sequence[Masters]) -> None:
        """Follow the modules that own parameters of `banks`, and only these from now on."""
        self.remove()
        self._banks = list(banks)
        places = self._places = {id(p): (masters, i) for masters in banks for i, p in enumerate(masters.parameters)}
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
            # Hooked even without a layer, because one may be unfrozen or join the optimizer later.
            if any(True for _ in module.parameters()):
                self._handles.append(module.register_forward_pre_hook(WeakHook(self._before_forward), prepend=True))
            if own:
                load, save = WeakHook(self._after_load), WeakHook(self._after_save)
                self._handles.append(module.register_load_state_dict_post_hook(load))  # type: ignore[no-untyped-call]
                self._handles.append(module.register_state_dict_post_hook(save))  # type: ignore[no-untyped-call]

    def remove(self) -> None:
        """Remove the hooks."""
        remove_all(self._handles)
        self._handles.clear()
        self._own, self._inside = {}, {}
        self._running = False

    @contextlib.contextmanager
    def pinned(self, view: View) -> Iterator[None]:
        """Within the context every parameter holds `view`, whatever the modules' mode, and then what it held before."""
        before = [list(masters.views) for masters in self._banks]
        outer, self._pin.view = self._pin.view, view
        try:
            for masters in self._banks:
                masters.show(view)
            self.renew()
            yield
        finally:
            self._pin.view = outer
            for masters, views in zip(self._banks, before, strict=True):
                for earlier in set(views):
                    masters.show(earlier, [i for i, v in enumerate(views) if v == earlier])
            self.renew()

    def renew(self) -> None:
        """Make FSDP forget whole copies of what the parameters held before."""
        if self._module is not None and any(masters.sharded for masters in self._banks):
            reshard_(self._module)

    def _before_forward(self, module: nn.Module, args: Any) -> None:
        """Show each layer in the view that the mode of its own module asks for."""
        if is_drawn() or self._pin.view is not None:
            return
        # One look at the optimizer is enough for all modules inside.
        outermost = module is self._module
        if outermost or not self._running:
            self._notice()
        self._running |= outermost
        stale = False
        for masters, index, owner in self._inside.get(module, ()):
            view: View = "training" if owner.training else "evaluation"
            if masters.views[index] != view:
                masters.show(view, [index])
                stale = True
        if stale:
            self.renew()

    def _after_forward(self, module: nn.Module, args: Any, output: Any) -> None:
        self._running = False

    def _after_load(self, module: nn.Module, keys: Any) -> None:
        """Make values that were loaded into a module masters."""
        for masters, index in self._own.get(module, {}).values():
            masters.accept(index)

    def _after_save(self, module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
        """Save what evaluation sees, whatever the module's mode."""
        if self._pin.view is not None:
            return
        # Found by identity: pruning renames a parameter, and a parametrisation moves it into a module of its own.
        inside = {prefix + name: self._places.get(id(p)) for name, p in _own_or_new(module, self._own)}
        for name, place in inside.items():
            if place is None:
                continue
            masters, index = place
            saved = state.get(name)
            # With keep_vars the caller asks for the parameter itself.
            if masters.views[index] != "evaluation" and isinstance(saved, Tensor) and not saved.requires_grad:
                state[name] = masters.seen(index, "evaluation")


def _own_or_new(module: nn.Module, known: Collection[nn.Module]) -> Iterator[tuple[str, Tensor]]:
    """The module's own parameters, and those of modules inside that are new and so have no hooks."""
    for name, parameter in module._parameters.items():
        if parameter is not None:
            yield name, parameter
    for path, child in module.named_children():
        if child not in known:
            yield from ((f"{path}.{name}", parameter) for name, parameter in _own_or_new(child, known))
