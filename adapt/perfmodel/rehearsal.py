"""Run a model once without touching it: on a copy of its structure, on the meta device where that is possible."""

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.utils.rnn import PackedSequence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from adapt import arguments
from adapt.perfmodel.twin import twin

Watcher = TypeVar("Watcher", bound=AbstractContextManager[Any])


def rehearse(
    model: nn.Module, example_inputs: tuple[Any, ...], watch: Callable[[nn.Module, tuple[Any, ...]], Watcher]
) -> Watcher:
    """Run a copy of `model` once, in evaluation mode and without gradients, and answer what watched it.

    The copy has tensors on the meta device, which have shapes and no values. Where the model's control flow needs
    values, a second copy runs with real ones. Either way the model, its hooks, its buffers, the objects in which it
    keeps things and the random streams stay as they are: a forward that reaches the model itself, say by a global
    name, is refused before it does anything to it. The copy is neither compiled nor wrapped in DataParallel or
    DistributedDataParallel.

    Args:
        model: any module; its layers must have their shapes.
        example_inputs: positional arguments of its forward.
        watch: makes the context in which the copy runs from the copy and the copied inputs.

    Raises:
        TypeError: `model` is no module, or a scripted one.
        ValueError: a lazy module has no shape yet.
        RuntimeError: forward fails on the inputs, or reaches the model itself.
    """
    _check(model)
    while isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        model = model.module
    ways: tuple[tuple[Callable[[Tensor], Tensor], AbstractContextManager[Any]], ...] = (
        (_on_meta, torch.device("meta")),
        (_cloned, nullcontext()),
    )
    failure: Exception | None = None
    for copy_tensor, device in ways:
        try:
            copy, inputs = twin((model, example_inputs), copy_tensor, {})
            watcher = watch(copy, inputs)
            with _undisturbed(model), torch.no_grad(), device, _apart(model), watcher:
                copy(*inputs)
            return watcher
        except _ReachedError:
            raise
        except Exception as error:
            failure = error
    raise RuntimeError(
        f"example_inputs could not be run through {type(model).__name__}: {type(failure).__name__}: {failure}"
    ) from failure


def samples_of(example_inputs: tuple[Any, ...], batch_size: int | None) -> int:
    """How many samples the inputs hold: `batch_size`, or the first dimension that all their tensors share.

    Raises:
        ValueError: no input, no tensor among them, tensors that disagree, or a batch without samples.
    """
    if not example_inputs:
        raise ValueError("example_inputs is empty: give one batch as forward takes it, operations(model, batch)")
    if batch_size is None:
        sizes = sorted(set(_first_dimensions(example_inputs)))
        if not sizes:
            raise ValueError("example_inputs hold no tensor with a batch dimension: say batch_size=")
        if len(sizes) > 1:
            raise ValueError(f"example_inputs disagree on the batch, first dimensions are {sizes}: say batch_size=")
        batch_size = sizes[0]
    if arguments.whole("batch_size", batch_size, "samples") < 1:
        raise ValueError(f"batch_size must be at least 1 sample, got {batch_size}")
    return batch_size


def _first_dimensions(value: Any) -> Iterator[int]:
    if isinstance(value, PackedSequence):
        yield int(value.batch_sizes[0])
    elif isinstance(value, Tensor):
        yield from value.shape[:1]
    elif isinstance(value, dict):
        yield from _first_dimensions(tuple(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _first_dimensions(item)


def wrapper_prefix(model: nn.Module) -> str:
    """What a wrapper such as AveragedModel, all of whose parameters are its `module`'s, puts before their names."""
    return "module." if all(name.startswith("module.") for name, _ in model.named_parameters()) else ""


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """Every tensor in nested containers, of a packed sequence its data."""
    for leaf in tree_leaves(tree, is_leaf=lambda part: isinstance(part, PackedSequence)):
        if isinstance(leaf, Tensor):
            yield leaf
        elif isinstance(leaf, PackedSequence):
            yield leaf.data


def _check(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise TypeError("model holds a scripted module, whose weights cannot be followed: pass the one it was made of")
    for name, parameter in model.named_parameters():
        if nn.parameter.is_lazy(parameter):
            raise ValueError(f"{name} has no shape yet: run one forward pass through the lazy module first")


def _on_meta(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def _cloned(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()


class _ReachedError(RuntimeError):
    """The copy's forward went to the model that it is a copy of."""


class _Guard(TorchDispatchMode):
    """Refuse every operation on these parts of a model, by id."""

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._names = names

    def check(self, part: nn.Module | Tensor) -> None:
        if id(part) in self._names:
            raise _ReachedError(
                f"model must find its layers through self, but its forward finds {self._names[id(part)]} in another "
                "way, where a copy cannot follow: do not name the model or its layers in the functions that it calls"
            )

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not torch.ops.prim.device.default:  # where a tensor lies may be asked
            for tensor in tensors_in((args, kwargs)):
                self.check(tensor)
        return func(*args, **(kwargs or {}))


@contextmanager
def _apart(model: nn.Module) -> Iterator[None]:
    """Refuse calls of the model's own modules and operations on its tensors: only what happens to a copy may happen.

    A copy cannot be led away from everything, such as a global name in a function. What it reaches so would not be
    counted, and would run hooks and move statistics.
    """
    parts = chain(model.named_modules(), model.named_parameters(), model.named_buffers())
    guard = _Guard({id(part): f"{type(model).__name__}{name and '.'}{name}" for name, part in parts})
    handle = register_module_forward_pre_hook(lambda module, args: guard.check(module))
    try:
        with guard:
            yield
    finally:
        handle.remove()


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Random streams as before, and attention without the fused kernels that no formula counts."""
    devices = sorted({parameter.device.index for parameter in model.parameters() if parameter.is_cuda})
    fast = torch.backends.mha.get_fastpath_enabled()
    streams = random.getstate(), np.random.get_state()  # noqa: NPY002
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        random.setstate(streams[0])
        np.random.set_state(streams[1])  # noqa: NPY002
