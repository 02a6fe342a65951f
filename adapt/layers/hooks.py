"""Hooks on modules: a hook that neither keeps its owner alive nor works in copies of the module, and helpers."""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from adapt import call_stack, torch_internals

_DRAWING = ("torch.utils.tensorboard", "tensorboardX")


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

    def __getattr__(self, name: str) -> Any:
        # torch.jit.script, which cannot compile these hooks, asks for their names first.
        hint = "; call detach() on the controller before torch.jit.script" if name == "__name__" else ""
        raise AttributeError(f"a hook of a controller has no attribute {name}{hint}")

    def __deepcopy__(self, memo: dict[int, Any]) -> "WeakHook":
        return WeakHook(None)

    def __reduce__(self) -> tuple[Any, ...]:
        return WeakHook, (None,)


def register_first(
    register: Callable[..., RemovableHandle], hook: Callable[..., Any], **options: Any
) -> RemovableHandle:
    """Register a hook of a module before those that the module has, and return its handle.

    torch moves the hook to the front of an OrderedDict, but the dict below keeps the order of insertion, in which
    Dynamo before torch 2.13 looks up the hooks that it guards. So the hooks are inserted again, in their order.

    Args:
        register: the module's method that registers the hook.
        hook: the hook.
        options: further arguments of `register`.
    """
    handle = register(hook, prepend=True, **options)
    hooks = handle.hooks_dict_ref()
    assert hooks is not None
    in_order = list(hooks.items())
    hooks.clear()
    hooks.update(in_order)
    return handle


def with_input(args: tuple[Any, ...], kwargs: dict[str, Any] | None, change: Callable[[Any], Any]) -> Any:
    """Return a layer's arguments with its input changed, in the form that a forward pre-hook returns.

    The input is the first positional argument. Without positional arguments it is the keyword argument `input`, as in
    torch's layers, or else the first tensor. If there is no input, the result is None.

    Args:
        args, kwargs: the arguments. torch passes no kwargs, and expects none back, if another hook of the same call has
            just removed this hook, as when layers join.
        change: the function to apply to the input.
    """
    if args:
        args = (change(args[0]), *args[1:])
        return args if kwargs is None else (args, kwargs)
    tensors = [name for name, value in (kwargs or {}).items() if isinstance(value, Tensor)]
    if not kwargs or not tensors:
        return None
    name = "input" if "input" in tensors else tensors[0]
    return args, {**kwargs, name: change(kwargs[name])}


def remove_all(handles: Iterable[Any]) -> None:
    """Remove the hooks of these handles."""
    for handle in handles:
        handle.remove()


def is_drawn() -> bool:
    """Return whether `torch.jit.trace` records the forward pass only for TensorBoard's drawing of the network.

    Any other trace is refused, because it would record the rounding of one forward pass as constants. Nothing computes
    with a drawing, which shows no rounding.

    Raises:
        RuntimeError: the pass is traced for another purpose.
    """
    if not torch_internals.tracing_state():
        return False
    if any(frame.f_globals.get("__name__", "").startswith(_DRAWING) for frame in call_stack.callers()):
        return True
    raise RuntimeError(
        "a module with an attached controller cannot be traced, as torch.jit.trace and torch.onnx.export(dynamo=False) "
        "do: call detach() on the controller first, or use adapt.export"
    )


def require_plain() -> None:
    """Refuse to round an activation that is transformed or recorded, because rounding is no operation of torch here.

    Raises:
        NotImplementedError: a transform of `torch.func` is active, or `make_fx` records the pass.
    """
    if torch_internals.is_transforming():
        raise NotImplementedError(
            "transforms of torch.func and make_fx cannot trace the rounding of activations: apply them to a model of "
            "which only the weights are quantised, or after detach()"
        )
