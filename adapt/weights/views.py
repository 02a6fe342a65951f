"""Which view of the masters a module's parameters show: hooks that follow the module's mode, loading and saving."""

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from adapt.distributed.sharding import reshard_
from adapt.layers.hooks import WeakHook, remove_all
from adapt.weights.masters import Masters, View


class Views:
    """Lets training see Ŵ as training rounds it, evaluation and checkpoints Ŵ rounded to nearest.

    Args:
        module: the module whose parameters are meant; without one nothing follows by itself.
        before_forward: called before every forward pass, to take in what joined the optimizer.
    """

    def __init__(self, module: nn.Module | None, before_forward: Callable[[], None]) -> None:
        self.pin: View | None = None
        self._module, self._notice = module, before_forward
        self._banks: list[Masters] = []
        self._handles: list[Any] = []
        self._places: dict[int, tuple[Masters, int]] = {}
        self._own: dict[nn.Module, dict[str, tuple[Masters, int]]] = {}
        self._inside: dict[nn.Module, list[tuple[Masters, int, nn.Module]]] = {}
        self._running = False

    def hook(self, banks: Sequence[Masters]) -> None:
        """Follow the modules that own parameters of `banks`, and no others from now on."""
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
            # Where there is no layer yet, one may be unfrozen or join the optimizer.
            if any(True for _ in module.parameters()):
                self._handles.append(module.register_forward_pre_hook(WeakHook(self._before_forward), prepend=True))
            if own:
                load, save = WeakHook(self._after_load), WeakHook(self._after_save)
                self._handles.append(module.register_load_state_dict_post_hook(load))  # type: ignore[no-untyped-call]
                self._handles.append(module.register_state_dict_post_hook(save))  # type: ignore[no-untyped-call]

    def remove(self) -> None:
        """Take the hooks away."""
        remove_all(self._handles)
        self._handles.clear()
        self._own, self._inside = {}, {}
        self._running = False

    @contextlib.contextmanager
    def pinned(self, view: View) -> Iterator[None]:
        """Within the context every parameter holds `view`, whatever the modules' mode; then what it held before."""
        before = [list(masters.views) for masters in self._banks]
        outer, self.pin = self.pin, view
        try:
            for masters in self._banks:
                masters.show(view)
            self.renew()
            yield
        finally:
            self.pin = outer
            for masters, views in zip(self._banks, before, strict=True):
                for earlier in set(views):
                    masters.show(earlier, [i for i, v in enumerate(views) if v == earlier])
            self.renew()

    def renew(self) -> None:
        """Let no forward pass see what the parameters held before, where FSDP keeps whole copies of them."""
        if self._module is not None and any(masters.sharded for masters in self._banks):
            reshard_(self._module)

    def _before_forward(self, module: nn.Module, args: Any) -> None:
        """Show each layer in the view that its own module's mode asks for."""
        if self.pin is not None:
            return
        # The modules inside need no further look at the optimizer.
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
        """New values in a module become masters."""
        for masters, index in self._own.get(module, {}).values():
            masters.accept(index)

    def _after_save(self, module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
        """What is saved of a module is what evaluation sees, whatever its mode."""
        if self.pin is not None:
            return
        # By identity: pruning renames a parameter, and a parametrisation moves it into a module of its own.
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
    """The module's own parameters, and those of modules inside that are new: which have no hooks."""
    for name, parameter in module._parameters.items():
        if parameter is not None:
            yield name, parameter
    for path, child in module.named_children():
        if child not in known:
            yield from ((f"{path}.{name}", parameter) for name, parameter in _own_or_new(child, known))
