"""Hooks on a module: one that neither keeps its owner alive nor follows the module into a copy, and an end to all."""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch


class WeakHook:
    """Calls a method while the method's object lives, and does nothing afterwards.

    Modules copy their hooks when they are copied or pickled; a copy of this hook does nothing, so a copied model
    is a plain model.
    """

    def __init__(self, method: Callable[..., Any] | None) -> None:
        self._method = None if method is None else weakref.WeakMethod(method)

    def __call__(self, *args: Any) -> None:
        if torch.compiler.is_compiling():
            return
        method = self._method and self._method()
        if method is not None:
            method(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> "WeakHook":
        return WeakHook(None)

    def __reduce__(self) -> tuple[Any, ...]:
        return WeakHook, (None,)


def remove_all(handles: Iterable[Any]) -> None:
    """Take away the hooks behind these handles."""
    for handle in handles:
        handle.remove()
