"""Reduced-precision execution: layers whose words fit a short floating-point type actually compute in it."""

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from adapt import user_warnings
from adapt.execution.float32_boundary import Float32Boundary
from adapt.execution.products import is_native
from adapt.execution.reduced_layer import ReducedLayer
from adapt.layers.hooks import register_first, remove_all
from adapt.layers.products import EMBEDDINGS, PRODUCTS, TransposedLinear, warn_of_others
from adapt.layers.view import Pin
from adapt.numerics import FixedPoint, Format

EXECUTIONS = {"bfloat16": torch.bfloat16, "float16": torch.float16}

_LONGEST_WORD = {torch.bfloat16: 8, torch.float16: 11}

_TAKE_SHORT_TYPES = {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d}
"""Modules with float32 parameters whose operators accept inputs of a short type and compute statistics in float32."""


class Execution:
    """Runs the products of a module's layers in bfloat16 or float16 while their words fit: see docs/execution.md.

    Layers are `nn.Linear`, the convolutions of `torch.nn` and transformers' `Conv1D`. They run in bfloat16 at 8 bits or
    less, in float16 at 11 bits or less if the range lies within float16's, and in float32 otherwise, as decided in
    every forward pass. A layer's output is rounded once, to the short type, and the outermost module returns float32.
    Masters, the optimizer, the gradients of the parameters and `state_dict()` stay float32.

    Args:
        module: the module whose layers to run.
        layers: the index of each quantised parameter, by the parameter's id.
        execution: "bfloat16" or "float16".
        backward: whether the products for the gradients run in the short type too.
        pin: the view that a context asks for; "masters", which are not on a grid, run in float32.
        old: the execution to take over from, possibly during a forward pass.

    Raises:
        ValueError: no layer of the module can run in the short type.
    """

    def __init__(
        self,
        module: nn.Module,
        layers: Mapping[int, int],
        *,
        execution: str,
        backward: bool,
        pin: Pin,
        old: "Execution | None" = None,
    ) -> None:
        if old is not None:
            old.remove()
        self._dtype = EXECUTIONS[execution]
        self._precisions: tuple[FixedPoint | None, ...] = (None,) * len(layers)
        self._pin = pin
        if old is None and not is_native(self._dtype, next(module.parameters()).device):
            user_warnings.warn(
                f"this processor has no {execution} products with float32 sums: the numbers are those of {execution}, "
                "but the work is done in float32 and is no faster"
            )
        # On the host for every device, because formats and kernels are chosen there.
        self._fits = torch.zeros(len(layers), dtype=torch.bool, device="cpu")
        owners = {m: layers[id(m.weight)] for m in module.modules() if _can_run(m) and id(m.weight) in layers}
        if not owners:
            raise ValueError(
                f"execution={execution!r} was asked for, but params has no linear layer or convolution that is "
                "quantised: leave execution=None"
            )
        if old is None:
            others = (m for m in module.modules() if m in owners or isinstance(m, EMBEDDINGS))
            warn_of_others(
                module,
                layers,
                others,
                f"{{}} run in float32, because {execution!r} execution covers only linear layers and convolutions",
            )
        self._boundary: Float32Boundary = Float32Boundary() if old is None else old._boundary
        handles: list[Any] = []
        for owner, index in owners.items():
            forward = ReducedLayer(owner, self._fits, index, self._dtype, backward, self._boundary)
            owner.__dict__["forward"] = forward
        for other in module.modules():
            if other in owners:
                continue
            if any(part in owners for part in other.modules()):
                handles.append(register_first(other.register_forward_pre_hook, self._boundary.enter))
                # Before all other hooks, so that these see the outermost module's float32 output.
                handles.append(register_first(other.register_forward_hook, self._boundary.leave, always_call=True))
            if other._parameters and type(other) not in _TAKE_SHORT_TYPES:
                handles.append(register_first(other.register_forward_pre_hook, self._boundary.widen, with_kwargs=True))
        self._remove = weakref.finalize(self, _restore, handles, [weakref.ref(owner) for owner in owners])

    def remove(self) -> None:
        """Restore the layers' own forward and remove the hooks."""
        self._remove()

    def set_formats(self, precisions: Sequence[FixedPoint | None]) -> None:
        """From now on, choose the types by these formats of the layers."""
        if tuple(precisions) != self._precisions:
            self._precisions = tuple(precisions)
            self.follow_pin()

    def follow_pin(self) -> None:
        """Choose each layer's type by its format and the pinned view."""
        exact = self._pin.view != "masters"
        fits = [exact and form is not None and fits_into(form, self._dtype) for form in self._precisions]
        self._fits.copy_(torch.tensor(fits, device="cpu"))


def fits_into(precision: FixedPoint, dtype: torch.dtype) -> bool:
    """Return whether every value of a format is a value of bfloat16 or float16, so that it can run in that type."""
    if precision.word_length > _LONGEST_WORD[dtype]:
        return False
    # bfloat16 has float32's exponents, which hold every format.
    information = torch.finfo(dtype)
    smallest = information.smallest_normal * information.eps
    form = Format.of(precision)
    return dtype == torch.bfloat16 or bool(form.step.min() >= smallest and -form.minimum.min() <= information.max)


def _can_run(module: nn.Module) -> bool:
    # The forward of a derived class is not known.
    known = type(module) in PRODUCTS or isinstance(module, TransposedLinear)
    return known and "forward" not in module.__dict__ and "weight" in module._parameters


def _restore(handles: Sequence[Any], owners: Sequence["weakref.ref[nn.Module]"]) -> None:
    remove_all(handles)
    for reference in owners:
        owner = reference()
        if owner is not None and isinstance(owner.__dict__.get("forward"), ReducedLayer):
            del owner.__dict__["forward"]
