"""All private names of torch that the package uses, so that supporting a new version of torch changes only this module.

Every name exists from torch 2.6 on, unless the comment beside it says otherwise. `.ci/versions` runs the tests with a
given version of torch, and docs/status.md lists the versions that were tested.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import CodeType
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch._library.custom_ops import CustomOpDef
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

__all__ = ["BatchNormNd", "ConvNd", "TorchDispatchMode", "tree_leaves", "tree_map_only"]

_C: Any = torch._C

ConvNd = nn.modules.conv._ConvNd
BatchNormNd = nn.modules.batchnorm._BatchNorm

foreach_copy = torch._foreach_copy_
foreach_multiply = torch._foreach_mul_

backward_pass: Callable[[], int] = _C._current_graph_task_id
"""Return the number of the backward pass in which the caller runs; −1 outside of one."""

tracing_state: Callable[[], object | None] = _C._get_tracing_state
"""Return the state into which `torch.jit.trace` records; None if it is not running."""


is_transformed: Callable[[Tensor], bool] = _C._functorch.is_functorch_wrapped_tensor
"""Return whether a transform of `torch.func` wraps the tensor."""


def is_transforming() -> bool:
    """Return whether a transform of `torch.func` is active, or `make_fx` records operations."""
    is_recording = _C._get_dispatch_mode(_C._TorchDispatchModeKey.PROXY) is not None
    return is_recording or _C._functorch.peek_interpreter_stack() is not None


def outside_of_transforms() -> AbstractContextManager[None]:
    """Return a context that suspends transforms and `make_fx`, to write tensors that they need not know of."""
    return _without_transforms() if is_transforming() else nullcontext()


@contextmanager
def _without_transforms() -> Iterator[None]:
    with temporarily_clear_interpreter_stack(), _disable_current_modes():
        yield


def memory_references(tensor: Tensor) -> int:
    """Return how many references there are to a tensor's memory, one of which is the tensor's own."""
    storage = tensor.untyped_storage()
    return int(_C._storage_Use_Count(storage._cdata)) - 1


def references(tensor: Tensor) -> int:
    """Return how many C++ references there are to a tensor; all of Python's count as one."""
    return int(tensor._use_count())  # type: ignore[attr-defined]


def set_version(tensor: Tensor, version: int) -> None:
    """Set the version counter by which autograd detects that a saved tensor was modified."""
    if _SETS_ONE_VERSION:
        _C._autograd._unsafe_set_version_counter(tensor, version)
    else:
        _C._autograd._unsafe_set_version_counter([tensor], [version])


_SETS_ONE_VERSION = "arg0: torch.Tensor" in _C._autograd._unsafe_set_version_counter.__doc__
"""In torch 2.6 the function takes one tensor at a time; later a list, in torch 2.8, or any sequence."""

# The stack of hooks that torch.autograd.graph.saved_tensors_hooks pushes: (pack, unpack) for what autograd saves.

hooks_are_enabled: Callable[[], bool] = _C._autograd._saved_tensors_hooks_is_enabled
push_hooks: Callable[[Callable[[Tensor], Any], Callable[[Any], Tensor]], None] = (
    _C._autograd._push_saved_tensors_default_hooks
)
pop_hooks: Callable[[], None] = _C._autograd._pop_saved_tensors_default_hooks

# Missing from torch 2.6.
_top_hooks: Callable[[bool], tuple[Any, Any] | None] | None = getattr(
    _C._autograd, "_top_saved_tensors_default_hooks", None
)


def may_have_hooks() -> bool:
    """Return whether saved tensors pass through hooks; always True if torch cannot tell."""
    return _top_hooks is None or _top_hooks(True) is not None


def may_be_on_top(pack: Callable[[Tensor], Any]) -> bool:
    """Return whether the innermost hooks are those of `pack`; always True if torch cannot tell."""
    if _top_hooks is None:
        return True
    top = _top_hooks(True)
    return top is not None and top[0] is pack


def random_op(name: str, *, schema: str | None = None) -> Callable[[Callable[..., Any]], CustomOpDef]:
    """Return a decorator like `torch.library.custom_op`, for an operator that draws noise and mutates no argument.

    Its tag asks the compiler not to merge two calls with the same input.
    """
    tag = torch.Tag.nondeterministic_seeded

    def register(kernel: Callable[..., Any]) -> CustomOpDef:
        if not _TAKES_TAGS:
            operator: CustomOpDef = torch.library.custom_op(name, kernel, mutates_args=(), schema=schema)
            operator._opoverload._tags.append(tag)
            return operator
        return torch.library.custom_op(name, kernel, mutates_args=(), schema=schema, tags=(tag,))

    return register


_TAKES_TAGS = "tags" in inspect.signature(torch.library.custom_op).parameters
"""False in torch 2.6, whose compiler still finds a tag that is added to the operator."""


checkpoint_code: CodeType = inspect.unwrap(
    getattr(torch.utils.checkpoint, "_checkpoint_impl", torch.utils.checkpoint.checkpoint)
).__code__
"""What runs a checkpointed region's first pass without re-entering autograd, and holds the generator `gen` that keeps
the region's frame as `new_frame`. From torch 2.14 on `checkpoint` is only a shell around it."""


def register_first(tensor: Any, hook: Callable[[Tensor], None]) -> None:
    """Register a hook on a tensor that runs before its existing hooks, such as FSDP's, which gathers weights."""
    older = dict(tensor._backward_hooks or {})
    tensor.register_hook(hook)
    # Insertion order decides; reordering the keys of the ordered dictionary does not affect what autograd reads.
    for key, other in older.items():
        del tensor._backward_hooks[key]
        tensor._backward_hooks[key] = other
