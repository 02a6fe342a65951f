"""Under FSDP, which gathers weights again for backward, show backward the weights that the forward pass saw."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adapt.layers.hooks import WeakHook
from adapt.layers.view import Pin, View
from adapt.torch_internals import backward_pass, register_first, tree_leaves
from adapt.weights.masters import Masters


class BackwardViews:
    """Makes sharded parameters show in a module's backward pass what they showed in its forward pass.

    FSDP frees the weights after a forward pass and gathers them again for backward, from what the parameters hold by
    then. A pass in another mode may have changed that, and autograd, which saved no weights, would not notice.

    Args:
        pin: the view that a context asks for.
        reshard: makes FSDP forget whole copies of what the parameters held before.
    """

    def __init__(self, pin: Pin, reshard: Callable[[], None]) -> None:
        self._pin, self._reshard = pin, reshard
        self._inside: dict[nn.Module, list[tuple[Masters, int]]] = {}
        self._task = -1

    def hook(self, inside: Mapping[nn.Module, Sequence[tuple[Masters, int, nn.Module]]]) -> list[Any]:
        """Hook the modules that FSDP gathers, and return the handles.

        Args:
            inside: the parameters inside each module, as (masters, index, owner).
        """
        self._inside = {
            module: [(masters, index) for masters, index, _ in places]
            for module, places in inside.items()
            if places and callable(getattr(module, "reshard", None))
        }
        return [module.register_forward_hook(WeakHook(self._after_forward)) for module in self._inside]

    def _after_forward(self, module: nn.Module, args: Any, output: Any) -> None:
        """Remember in the graph which views the parameters show."""
        if not torch.is_grad_enabled():
            return
        places = self._inside[module]
        seen = [_shown(*place) for place in places]

        def before_backward(gradient: Tensor) -> None:
            if self._inside.get(module) is places:
                self._show(places, seen)

        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                register_first(tensor, before_backward)

    def _show(self, places: Sequence[tuple[Masters, int]], seen: Sequence[View | None]) -> None:
        task = backward_pass()
        stale = [(*place, view) for place, view in zip(places, seen, strict=True) if _shown(*place) != view]
        if stale and (task == self._task or self._pin.view is not None):
            raise RuntimeError(
                "FSDP gathers weights again in backward(), so passes that saw them in different modes cannot share "
                "one: call backward() on the loss of each mode by itself, outside of evaluation_weights() and "
                "master_weights()"
            )
        for masters, index, view in stale:
            # Unknown only after an interrupted write, which the next pass repairs.
            if view is not None:
                masters.show(view, [index])
        if stale:
            self._reshard()
        self._task = task


def _shown(masters: Masters, index: int) -> View | None:
    """Return the view that a parameter shows, with one name for views that are equal."""
    view = masters.views[index]
    return view if masters.is_stochastic or view == "masters" else "evaluation"
