"""Copy a model's structure, and the objects in which it keeps things, without following it into the whole program."""

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
"""Packages whose objects are machinery."""

_OPEN = frozenset((*SimpleNamespace.__mro__, *Namespace.__mro__, dict, list, ABC, Generic, Protocol))
"""Classes of the standard library that say nothing against a copy."""


def twin(value: Any, copy_tensor: Callable[[Tensor], Tensor], copies: dict[int, Any]) -> Any:
    """Copy modules, containers, tensors and the objects that keep them, once each, and refer to everything else.

    `copy.deepcopy` would copy every weight, and follow hooks and a trainer into all that they hold. What stands in for
    a module's forward, or for another function, is followed to the modules that it calls: they must be the copies.
    What a forward may write into must be a copy too, or the copy's tensors would stay in the model's own memory.

    Args:
        value: what to copy.
        copy_tensor: makes the tensor that stands for one.
        copies: what was copied already, by id; empty for a new copy.
    """
    if id(value) in copies:
        return copies[id(value)]

    def again(part: Any) -> Any:
        return twin(part, copy_tensor, copies)

    copy = value
    if isinstance(value, nn.Module):
        if "_orig_mod" in value._modules:  # what torch.compile answers
            return again(value._modules["_orig_mod"])
        # Remembered before its attributes are copied, because they may lead back to it.
        copy = copies[id(value)] = object.__new__(type(value))
        for name, attribute in vars(value).items():
            vars(copy)[name] = _structural(attribute) if name in _HOOKS else again(attribute)
        vars(copy).update(training=False, _compiled_call_impl=None)
    elif isinstance(value, nn.Parameter):
        copy = nn.Parameter(copy_tensor(value), requires_grad=value.requires_grad)
    elif isinstance(value, Tensor):
        copy = copy_tensor(value)
    elif isinstance(value, PackedSequence):
        # The batch sizes steer the kernels' loops and are read even on the meta device.
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
        if "_torchdynamo_orig_callable" in vars(value):  # what torch.compile answers
            return again(vars(value)["_torchdynamo_orig_callable"])
        closure, defaults = again(value.__closure__), again(value.__defaults__)
        copy = FunctionType(value.__code__, value.__globals__, value.__name__, defaults, closure)
        copy.__kwdefaults__ = again(value.__kwdefaults__)
        vars(copy).update(vars(value))
    elif isinstance(value, CellType):
        # Remembered before it is filled, because a function may close over itself.
        copy = copies[id(value)] = CellType()
        with suppress(ValueError):  # what it holds may not be there yet
            copy.cell_contents = again(value.cell_contents)
    elif _calls_a_module(value):
        # As it copies itself: what runs layers faster may copy as what does nothing but run them.
        copy = copies[id(value)] = shallow_copy(value)
        state = dict(vars(copy))
        copies[id(state)] = state  # An id is remembered for good, so what it belongs to must stay.
        vars(copy).update((name, again(attribute)) for name, attribute in state.items())
    elif _keeps_state(value):
        # Without its __init__, which may need arguments, and remembered first, as a module is.
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
    """Whether it is an object that can be called and holds a module, as what stands in for a forward does."""
    held = getattr(value, "__dict__", {}).values()
    return callable(value) and not isinstance(value, type) and any(isinstance(part, nn.Module) for part in held)


def _keeps_state(value: Any) -> bool:
    """Whether it is an object of someone's own class, such as a dataclass or a dictionary with attributes.

    A library's objects lead to the whole program: a trainer to its loggers and data. A class that makes or destroys its
    instances in its own way may own what there must be only one of, and what can have no attributes is a mere mark.
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


def _structural(hooks: dict[int, Any]) -> dict[int, Any]:
    """Only the hooks by which torch's pruning, weight norm and spectral norm compute a weight: parts of the layer."""
    return OrderedDict((k, hook) for k, hook in hooks.items() if type(hook).__module__.startswith("torch.nn.utils."))
