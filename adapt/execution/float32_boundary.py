"""The boundary of short types: outputs of the outermost module, and inputs of modules that must not mix types."""

import threading
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from adapt import call_stack, torch_internals

_SHORT = (torch.bfloat16, torch.float16)


class Float32Boundary(threading.local):
    """Tracks the depth of nested module calls, and widens the output of the outermost module to float32.

    Each thread has its own count. In a copied or pickled module this does nothing.
    """

    def __init__(self, active: bool = True) -> None:
        self.depth, self.active = 0, active
        self._caller: FrameType | None = None

    def enter(self, module: nn.Module, args: Any) -> None:
        """Forward pre-hook of a module that contains layers: go one level deeper."""
        if not self.active or torch.compiler.is_compiling():
            return
        # torch calls no hooks when Ctrl-C interrupts a module, so the count may be left over from an earlier call.
        if self._caller is None or not call_stack.is_running(self._caller):
            self.depth, self._caller = 0, call_stack.caller()
        self.depth += 1

    def leave(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Forward hook of a module that contains layers, also called after an exception: go one level up."""
        if not self.active or torch.compiler.is_compiling():
            return None
        self.depth = max(self.depth - 1, 0)
        if self.depth:
            return output
        self._caller = None
        return _widened(output)

    def widen(self, module: nn.Module, args: Any, kwargs: dict[str, Any] | None = None) -> Any:
        """Forward pre-hook of a module that owns float32 parameters: give it float32 inputs."""
        if not self.active or torch.compiler.is_compiling():
            return None
        # torch passes no kwargs to a hook that another hook of the same call has just removed, as when layers join.
        return _widened(args) if kwargs is None else _widened((args, kwargs))

    def __reduce__(self) -> tuple[Any, ...]:
        return Float32Boundary, (False,)


def _widened(values: Any) -> Any:
    def widen(tensor: Tensor) -> Tensor:
        return tensor.float() if tensor.dtype in _SHORT else tensor

    return torch_internals.tree_map_only(Tensor, widen, values)
