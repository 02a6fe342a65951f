"""Copy a model's structure and the objects in which it keeps state, and nothing else."""

import sys
from abc import ABC
from argparse import Namespace
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from copy import copy as shallow_copy
from functools import partial
from types import CellType, FunctionType, MemberDescriptorType, MethodType, SimpleNamespace
from typing import Any, Generic, Protocol

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

_HOOKS = frozenset(name for name in vars(nn.Module()) if "hooks" in name)

_LIBRARIES = sys.stdlib_module_names | {
    "adapt",
    "lightning",
    "lightning_fabric",
    "lightning_utilities",
    "pytorch_lightning",
    "torch",
    "triton",
}
"""Packages whose objects are shared with the copy: they may lead to the whole program."""

_OPEN = frozenset((*SimpleNamespace.__mro__, *Namespace.__mro__, dict, list, ABC, Generic, Protocol))
"""Classes of the standard library from which a class that keeps state may be derived."""


def structural_copy(value: Any, copy_tensor: Callable[[Tensor], Tensor], copies: dict[int, Any]) -> Any:
    """Copy modules, containers, tensors and the objects that hold them, once each, and share everything else.

    `copy.deepcopy` would copy every weight, and would follow hooks and a trainer into everything they refer to. A
    function or object that replaces a module's forward is copied too, so that it calls the copied modules. So is every
    object that a forward may write into; otherwise the copy's tensors would end up in the original model.

    Args:
        value: the object to copy.
        copy_tensor: returns the tensor that replaces a given one.
        copies: the copies made so far, by the id of the original; empty at first.

    Returns:
        The copy, or `value` itself if it is shared.
    """
    if id(value) in copies:
        return copies[id(value)]

    def again(part: Any) -> Any:
        return structural_copy(part, copy_tensor, copies)

    copy = value
    if isinstance(value, nn.Module):
        if "_orig_mod" in value._modules:  # a compiled module
            return again(value._modules["_orig_mod"])
        # Recorded before its attributes are copied, because they may lead back to it.
        copy = copies[id(value)] = object.__new__(type(value))
        for name, attribute in vars(value).items():
            vars(copy)[name] = _weight_computing(attribute) if name in _HOOKS else again(attribute)
        vars(copy).update(training=False, _compiled_call_impl=None)
    elif isinstance(value, nn.Parameter):
        copy = nn.Parameter(copy_tensor(value), requires_grad=value.requires_grad)
    elif isinstance(value, Tensor):
        copy = copy_tensor(value)
    elif isinstance(value, PackedSequence):
        # The kernels read the batch sizes even on the meta device: their loops depend on them.
        order = again(value.sorted_indices), again(value.unsorted_indices)
        copy = PackedSequence(again(value.data), value.batch_sizes, *order)
    elif type(value) in (dict, OrderedDict):
        copy = type(value)((key, again(item)) for key, item in value.items())
    elif type(value) is defaultdict:
        copy = defaultdict(value.default_factory, ((key, again(item)) for key, item in value.items()))
    elif type(value) is deque:
        copy = deque(map(again, value), value.maxlen)
    elif type(value) in (list, tuple, set):
        copy = type(value)(again(item) for item in value)
    elif isinstance(value, MethodType):
        copy = MethodType(value.__func__, again(value.__self__))
    elif type(value) is partial:
        copy = partial(again(value.func), *again(value.args), **again(value.keywords))
    elif isinstance(value, FunctionType):
        if "_torchdynamo_orig_callable" in vars(value):  # a compiled function
            return again(vars(value)["_torchdynamo_orig_callable"])
        closure, defaults = again(value.__closure__), again(value.__defaults__)
        copy = FunctionType(value.__code__, value.__globals__, value.__name__, defaults, closure)
        copy.__kwdefaults__ = again(value.__kwdefaults__)
        vars(copy).update(vars(value))
    elif isinstance(value, CellType):
        # Recorded before it is filled, because a function may close over itself.
        copy = copies[id(value)] = CellType()
        with suppress(ValueError):  # the cell may still be empty
            copy.cell_contents = again(value.cell_contents)
    elif _calls_a_module(value):
        # Through its own __copy__ or __getstate__: a forward replaced by `adapt.execution` copies as the plain forward.
        copy = copies[id(value)] = shallow_copy(value)
        state = dict(vars(copy))
        copies[id(state)] = state  # Keeps the copied attributes alive, because their ids are recorded.
        vars(copy).update((name, again(attribute)) for name, attribute in state.items())
    elif _keeps_state(value):
        # Created without __init__, which may need arguments, and recorded first, as for a module.
        kind: Any = type(value)
        copy = copies[id(value)] = kind.__new__(kind)
        if isinstance(value, dict):
            dict.update(copy, ((key, again(item)) for key, item in dict.items(value)))
        elif isinstance(value, list):
            list.extend(copy, map(again, list.__iter__(value)))
        for name in _filled_slots(value):
            object.__setattr__(copy, name, again(getattr(value, name)))
        for name, attribute in getattr(value, "__dict__", {}).items():
            vars(copy)[name] = again(attribute)
    copies[id(value)] = copy
    return copy


def _calls_a_module(value: Any) -> bool:
    """Return whether this is a callable object that holds a module, such as one that replaces a forward."""
    held = getattr(value, "__dict__", {}).values()
    return callable(value) and not isinstance(value, type) and any(isinstance(part, nn.Module) for part in held)


def _keeps_state(value: Any) -> bool:
    """Return whether this is an instance of a user's own class, such as a dataclass or a dictionary with attributes.

    A library's objects may lead to the whole program, as a trainer leads to its loggers and data. A class with its own
    `__new__` or `__del__` may own a resource that must not be duplicated. An object without attributes, such as a
    sentinel, keeps no state.
    """
    kind = type(value)
    return (
        kind.__new__ in (object.__new__, SimpleNamespace.__new__, dict.__new__, list.__new__)
        and not hasattr(kind, "__del__")
        and (hasattr(value, "__dict__") or any(_filled_slots(value)))
        and all(base in _OPEN or base.__module__.partition(".")[0] not in _LIBRARIES for base in kind.__mro__)
    )


def _filled_slots(value: Any) -> Iterator[str]:
    for base in type(value).__mro__:
        for name, member in vars(base).items():
            if isinstance(member, MemberDescriptorType) and name != "__dict__" and hasattr(value, name):
                yield name


def _weight_computing(hooks: dict[int, Any]) -> dict[int, Any]:
    """Return only the hooks with which torch's pruning, weight norm and spectral norm compute a weight."""
    return OrderedDict((k, hook) for k, hook in hooks.items() if type(hook).__module__.startswith("torch.nn.utils."))
