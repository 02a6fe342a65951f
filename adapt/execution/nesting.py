"""Where the short types end: the outermost module answers in float32, and so do layers that could not mix types."""

import threading
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from adapt import call_stack

_SHORT = (torch.bfloat16, torch.float16)


class Outermost(threading.local):
    """Counts how many modules are at work inside each other, and lets the outermost one answer in float32.

    Each thread counts for itself. In a copy of a module it does nothing.
    """

    def __init__(self, active: bool = True) -> None:
        self.depth, self.active = 0, active
        self._frame: FrameType | None = None

    def enter(self, module: nn.Module, args: Any) -> None:
        """A module begins."""
        if not self.active or torch.compiler.is_compiling():
            return
        # Ctrl-C ends modules without a word.
        if self._frame is None or not call_stack.is_running(self._frame):
            self.depth, self._frame = 0, call_stack.caller()
        self.depth += 1

    def widen(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        """Give a module with parameters of its own, which may not mix types, float32 to work with."""
        return _widened((args, kwargs)) if self.active and not torch.compiler.is_compiling() else None

    def leave(self, module: nn.Module, args: Any, output: Any) -> Any:
        """A module ends, by an exception perhaps."""
        if not self.active or torch.compiler.is_compiling():
            return None
        self.depth = max(self.depth - 1, 0)
        if self.depth:
            return output
        self._frame = None
        return _widened(output)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Outermost":
        return Outermost(False)

    def __reduce__(self) -> tuple[Any, ...]:
        return Outermost, (False,)


def _widened(output: Any) -> Any:
    def widen(tensor: Tensor) -> Tensor:
        return tensor.float() if tensor.dtype in _SHORT else tensor

    return torch.utils._pytree.tree_map_only(Tensor, widen, output)
