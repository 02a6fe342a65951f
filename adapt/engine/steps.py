"""Find the moments in an optimizer's step between backward and update, and after the update."""

from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

import torch
from torch.optim import Optimizer

from adapt import call_stack, torch_internals
from adapt.distributed.sharding import full
from adapt.layers.optimizers import optimized


class Steps:
    """Calls back once between backward and update, and once after the update, however `step` is called.

    With a closure, forward and backward run inside `step`, so `before_update` has to follow the closure. An optimizer
    may override `step` and call its parent's, which runs the hooks a second time.

    Args:
        optimizer: the optimizer.
        before_update: called with the closure's result, or None if there is no closure.
        after_update: called after the update.
        undo: called before an error is raised, to restore the quantised weights.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        before_update: Callable[[Any], None],
        after_update: Callable[[], None],
        undo: Callable[[], None],
    ) -> None:
        self._optimizer = optimizer
        self._before_update, self._after_update = before_update, after_update
        self._undo = undo
        self._closure: Callable[[], Any] | None = None
        self._updating = False
        self._frame: FrameType | None = None
        self._nested = 0
        # A compiled step must call them uncompiled: they inspect call frames and tensors' memory.
        disable: Callable[..., Any] = torch.compiler.disable
        self._hooks = disable(self._before_step), disable(self._after_step)

    def hook(self) -> list[Any]:
        """Register the hooks on the optimizer and return their handles."""
        return [
            self._optimizer.register_step_pre_hook(self._hooks[0]),
            self._optimizer.register_step_post_hook(self._hooks[1]),
        ]

    def is_watched(self) -> bool:
        """Return whether another hook runs between these two, around the update."""
        optimizer: Any = self._optimizer
        last = next(reversed(optimizer._optimizer_step_pre_hooks.values()), None)
        first = next(iter(optimizer._optimizer_step_post_hooks.values()), None)
        return last is not self._hooks[0] or first is not self._hooks[1]

    def forget(self) -> None:
        """Forget any update in progress, as after loading a state."""
        self._updating, self._frame = False, None

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        closure = kwargs.get("closure") or (args[1] if len(args) > 1 else None)
        if self._is_within_step(closure) or self._only_creates_state(kwargs):
            self._nested += 1
            return None
        self._nested = 0
        if closure is None:
            self._before_update(None)
            self._updating, self._frame = True, call_stack.caller()
            return None
        self._updating, self._frame, self._closure = False, call_stack.caller(), self._watched(closure)
        if "closure" in kwargs:
            return args, {**kwargs, "closure": self._closure}
        return (args[0], self._closure, *args[2:]), kwargs

    def _is_within_step(self, closure: Callable[[], Any] | None) -> bool:
        """Return whether an optimizer that overrides `step` is calling its parent's.

        An update that an exception interrupted does not count: the call of `step` that began it has returned.
        """
        if closure is not None:
            return closure is self._closure
        return self._updating and self._frame is not None and call_stack.is_running(self._frame)

    def _only_creates_state(self, kwargs: Mapping[str, Any]) -> bool:
        """Return whether torch.distributed.checkpoint makes this step only to create the optimizer's state.

        Like the first step of a warm-up its learning rate is zero, but its gradients are zero too.
        """
        idle = "closure" in kwargs and kwargs["closure"] is None
        if not idle or any(float(group.get("lr", 1)) for group in self._optimizer.param_groups):
            return False
        return not any(p.grad is not None and bool(full(p.grad).any()) for p in optimized(self._optimizer))

    def _watched(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        def watched() -> Any:
            if self._updating:
                self._updating = False
                self._undo()
                raise RuntimeError(
                    f"{type(self._optimizer).__name__} evaluated its closure twice in one step, but the second "
                    "forward pass would run on float32 masters: use an optimizer that evaluates it once"
                )
            with torch.enable_grad():
                loss = closure()
            self._before_update(loss)
            self._updating = True
            return loss

        return watched

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._nested:
            self._nested -= 1
            return
        self._closure = None
        if not self._updating:
            self._undo()
            raise RuntimeError(
                f"{type(self._optimizer).__name__} made a step without evaluating its closure: "
                "call backward() yourself and step() without a closure"
            )
        self._updating, self._frame = False, None
        self._after_update()


def unscale(optimizer: Optimizer) -> None:
    """Undo a GradScaler's scale that was left to a fused optimizer: norms and penalties need true gradients."""
    scale = getattr(optimizer, "grad_scale", None)
    if scale is not None:
        gradients = [p.grad for p in optimized(optimizer) if p.grad is not None]
        torch_internals.foreach_multiply(gradients, scale.double().reciprocal().to(scale.dtype))
        optimizer.grad_scale = None  # type: ignore[attr-defined]
