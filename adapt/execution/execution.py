"""Reduced-precision execution: layers whose words fit a short floating point type really compute in it."""

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from adapt import user_warnings
from adapt.execution.nesting import Outermost
from adapt.execution.normalization import NORMALIZATIONS
from adapt.execution.overrides import FastNormalization, Override, ReducedLayer
from adapt.execution.products import is_native
from adapt.layers.hooks import remove_all
from adapt.layers.products import PRODUCTS
from adapt.layers.view import Pin
from adapt.numerics import Precision

EXECUTIONS = {"bfloat16": torch.bfloat16, "float16": torch.float16}

_LONGEST_WORD = {torch.bfloat16: 8, torch.float16: 11}


class Execution:
    """Runs the products of a module's layers in bfloat16 or float16, where the layer's word fits, while it fits.

    Layers are `nn.Linear` and the convolutions of `torch.nn`, plain, grouped and transposed. A layer runs in bfloat16
    at 8 bits or less, in float16 at 11 bits or less if its values lie in float16's range. All others, and a layer
    that has grown too long, run in float32 as if nothing were set. Masters, the optimizer, the gradients of the
    parameters and `state_dict()` stay float32; the choice is made anew in every forward pass.

    What is exact and what is rounded, compared with the simulation in float32:

    * The weights are exact: every value of such a format is one of the short type.
    * The input is exact where `activations` quantises it at such a word length, or where a layer before answered in
      the short type. Otherwise it is rounded to the nearest value of the short type.
    * Products and sums are float32. The product of two such operands is exact in float32; the sums are those of the
      platform's kernel, in its order. On CUDA torch lets cuBLAS add up partial sums in the short type, unless
      `torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction`, or that of float16, is off.
    * A bias is rounded to the short type before it is added.
    * The output is rounded once, to the short type: by up to 2^−8 of its magnitude in bfloat16, 2^−11 in float16.
      What follows (normalisation, activation functions, …) runs on the short type as torch does it, until the
      outermost module answers; that answer is float32 again, but not within an object that `torch.utils._pytree` does
      not know, such as a dataclass. Batch normalisation of bfloat16 in training has a
      kernel of its own on the CPU, with float32 statistics and one rounding, where channels are innermost.
    * With `backward`, the products for the gradients run in the short type too: the error that comes back and the
      gradients of input, weight and bias are each rounded to it once, and the latter two are then widened to float32.
      Without, these products run in float32 on the operands of the forward product, and only the error that passes
      between two layers is of the short type.

    So a layer's output is the simulated one, rounded once, as long as its operands are exact and its sums fit 24 bits;
    what comes after it differs. Measured with words of 8 bits, rounded to nearest, at batch 128, before training: the
    outputs of the layers are off by 0.16 to 0.19 % of the float32 ones for the same operands (root mean square), the
    logits by 0.37 % (ResNet-20), 0.35 % (AlexNet) and 0.43 % (three hidden layers) of the simulated ones, and the
    gradients of the weights by 0.2 to 29 %, most in the first layers of ResNet-20. bfloat16 autocast is off by as much:
    logits by 0.38, 0.35 and 0.43 %, gradients by 0.2 to 28 %.

    All other modules that have parameters (layers that are not quantised, recurrent layers, attention, layer
    normalisation, your own) are given float32. Where a module by itself multiplies such activations, with a parameter
    of its own or with each other as written-out attention does, it needs `torch.autocast` around it, as with all short
    types: one of two layers may outgrow the short type, and then their answers are of two types. Layers that do not fit
    stay in float32 under it.

    The layout of 4-dimensional tensors is the one that torch would choose, channels last if input or weight have it:
    `model.to(memory_format=torch.channels_last)` is what is fast. On the CPU small pictures of many channels are
    computed, and answered, in the plain layout, because that is faster there, and the gradient of their weight is
    computed as a convolution over the batch. An input's gradient that lost the channels-last layout, as that of a slice
    does, gets it back.

    int8 is not used. Its forward product takes half the time of bfloat16's (torch 2.13, AVX-512 with VNNI:
    `torch._int_mm` 0.5; oneDNN's convolutions 0.53 to 0.63, for unsigned inputs). But it needs quantised inputs, and
    rounding those of a convolution takes 0.1 to 2 times what it saves; its weights must be prepared anew after every
    step, which takes 5 to 19 % of a convolution's time in bfloat16. The products for the gradients stay in bfloat16.
    AlexNet's step, a fifth of which is forward products, could win 4 %, that of ResNet-20 nothing.

    Under `torch.compile` both ways are one operator, so nothing is recompiled when a precision moves. Its answer is
    rounded like the layer's here, but is float32, and what follows runs in float32.

    Args:
        module: the module whose layers to run.
        layers: the index of each quantised parameter, by the parameter's id.
        execution: "bfloat16" or "float16".
        backward: whether the products for the gradients run in the short type too.
        pin: the view that a context asks for; "masters", which lie on no grid, run in float32.
        old: execution to take over from, in the middle of a forward pass perhaps.

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
        self._precisions: tuple[Precision | None, ...] = (None,) * len(layers)
        self._pin = pin
        # On the host, whatever the device: formats are decided there, and kernels chosen.
        if old is None and not is_native(self._dtype, next(module.parameters()).device):
            user_warnings.warn(
                f"this processor has no {execution} products with float32 sums: the numbers are those of {execution}, "
                "but the work is done in float32 and is no faster",
            )
        self._fits = torch.zeros(len(layers), dtype=torch.bool, device="cpu")
        owners = {m: layers[id(m.weight)] for m in module.modules() if _can_run(m) and id(m.weight) in layers}
        if not owners:
            raise ValueError(
                f"execution={execution!r} was asked for, but params has no linear layer or convolution that is "
                "quantised: leave execution=None"
            )
        outermost = Outermost() if old is None else old._outermost
        self._outermost: Outermost = outermost
        handles: list[Any] = []
        for owner, index in owners.items():
            forward = ReducedLayer(owner, self._fits, index, self._dtype, backward, outermost)
            owner.__dict__["forward"] = forward
            if forward.module.weight.dim() == 4:
                # Before activations are rounded: it is the gradient of what comes in that others add to.
                handles.append(owner.register_forward_pre_hook(forward.watch, prepend=True))
        normalizations = [m for m in module.modules() if type(m) in NORMALIZATIONS and "forward" not in m.__dict__]
        for normalization in normalizations:
            normalization.__dict__["forward"] = FastNormalization(normalization)
        for other in module.modules():
            if other in owners or type(other) in NORMALIZATIONS:
                continue
            if any(part in owners for part in other.modules()):
                handles.append(other.register_forward_pre_hook(outermost.enter, prepend=True))
                # First of all, so that everyone else who hooks on the outermost module sees its answer.
                handles.append(other.register_forward_hook(outermost.leave, prepend=True, always_call=True))
            if other._parameters:
                handles.append(other.register_forward_pre_hook(outermost.widen, with_kwargs=True, prepend=True))
        overridden = [weakref.ref(m) for m in (*owners, *normalizations)]
        self._remove = weakref.finalize(self, _restore, handles, overridden)

    def remove(self) -> None:
        """Give the layers their own forward back and take the hooks away."""
        self._remove()

    def use(self, precisions: Sequence[Precision | None]) -> None:
        """Decide by these formats of the layers from now on."""
        noted = tuple(precisions)
        if noted != self._precisions:
            self._precisions = noted
            self.follow_pin()

    def follow_pin(self) -> None:
        """Run each layer as its format and the pinned view allow."""
        exact = self._pin.view != "masters"
        fits = [exact and form is not None and fits_into(form, self._dtype) for form in self._precisions]
        self._fits.copy_(torch.tensor(fits, device="cpu"))


def fits_into(precision: Precision, dtype: torch.dtype) -> bool:
    """Whether a format is short enough to run in bfloat16 or float16: every one of its values is one of the type's."""
    if precision.word_length > _LONGEST_WORD[dtype]:
        return False
    # bfloat16 has float32's exponents, which hold every format.
    information = torch.finfo(dtype)
    smallest = information.smallest_normal * information.eps
    return dtype == torch.bfloat16 or (precision.step >= smallest and -precision.minimum <= information.max)


def _can_run(module: nn.Module) -> bool:
    # What a derived class does in its forward is not known.
    return type(module) in PRODUCTS and "forward" not in module.__dict__ and "weight" in module._parameters


def _restore(handles: Sequence[Any], owners: Sequence["weakref.ref[nn.Module]"]) -> None:
    remove_all(handles)
    for reference in owners:
        owner = reference()
        if owner is not None and isinstance(owner.__dict__.get("forward"), Override):
            del owner.__dict__["forward"]
