"""Rounding the inputs of layers with a learned step and range, by hooks on the layers."""

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from adapt.execution.products import LAYERS
from adapt.kernels.activation import TYPES
from adapt.layers.hooks import remove_all
from adapt.layers.layering import owners
from adapt.learned.calibration import percentile
from adapt.learned.formats import Formats
from adapt.learned.through import Quantizer
from adapt.weights.masters import View


class Met:
    """What a calibration met at one site.

    Attributes:
        samples: how many samples the present batch has.
        percentiles, means: the 99.99th percentile and the mean of the magnitudes, for each pass with finite values.
        negative: whether a value was below zero.
        elements: the most elements of a pass, for one sample.
    """

    def __init__(self) -> None:
        self.percentiles: list[float] = []
        self.means: list[float] = []
        self.negative = False
        self.samples, self.elements = 1, 0.0

    def look(self, x: Tensor) -> None:
        """Take one pass's values in."""
        if x.isfinite().any():
            self.percentiles.append(percentile(x))
            self.means.append(float(x.detach().abs().double().nan_to_num(posinf=0.0).mean()))
        self.negative |= bool((x < 0).any())
        self.elements = max(self.elements, x.numel() / self.samples)


class Sites:
    """The inputs of the linear layers and convolutions whose weights are quantised.

    What else owns a quantised weight, such as a recurrent layer, attention or an embedding, keeps its activations: the
    inner values of the first two cannot be reached, and what an embedding hands on is on its weight's grid already.

    Programs of torch.compile and torch.export hold the rounding as an operator.

    For backward the values are kept as they came, not a rounded copy or a mask: a ReLU before the layer keeps the
    same tensor anyway, and backward computes again what it needs from it.

    Args:
        module: the module whose layers to hook.
        weights: the names of the quantised weights by their ids.

    Attributes:
        names: of the sites: the weights' names by this path and ".input".
    """

    def __init__(self, module: nn.Module, weights: Mapping[int, str]) -> None:
        # Attention calls no forward of its projection, whose weight it uses itself.
        inner = "NonDynamicallyQuantizableLinear"
        found = [pair for pair in owners(module, LAYERS, weights) if type(pair[1]).__name__ != inner]
        self.names = tuple(f"{name}.input" for name, _ in found)
        self._hooks = [_Hook(i) for i in range(len(found))]
        handles = [
            owner.register_forward_pre_hook(hook.before, with_kwargs=True)
            for (_, owner), hook in zip(found, self._hooks, strict=True)
        ]
        self._remove = weakref.finalize(self, remove_all, handles)
        # Something in the graph of every pass must ask for a gradient, even where the input does not.
        self._anchor = torch.zeros((), requires_grad=True)

    def watch(self) -> list[Met]:
        """From now on only look at what passes, and answer what will be met at each site."""
        met = [Met() for _ in self._hooks]
        for hook, one in zip(self._hooks, met, strict=True):
            hook.quantizer, hook.met = None, one
        return met

    def quantize(self, formats: Formats, scaling: str, delta: float) -> None:
        """From now on round by these formats, which hold the sites by name."""
        for name, hook in zip(self.names, self._hooks, strict=True):
            hook.met = None
            hook.quantizer = Quantizer(formats, formats.places[name].start, scaling, delta, self._anchor)

    def pin(self, view: View | None) -> None:
        """Until the next call with None: "masters" does not round."""
        for hook in self._hooks:
            hook.idle = view == "masters"

    def remove(self) -> None:
        """Take the hooks away."""
        self._remove()


class _Hook:
    """What a layer's hook does. A copy, and so a copied or pickled model, does nothing."""

    def __init__(self, site: int | None) -> None:
        self.site = site
        self.met: Met | None = None
        self.quantizer: Quantizer | None = None
        self.idle = False

    def before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Round the first argument, or the one that is called input."""
        if args:
            return (self._apply(args[0], module.training), *args[1:]), kwargs
        if "input" in kwargs:
            return args, {**kwargs, "input": self._apply(kwargs["input"], module.training)}
        return None

    def _apply(self, x: Any, training: bool) -> Any:
        if self.idle or not isinstance(x, Tensor) or x.dtype not in TYPES or not x.numel():
            return x
        if self.met is not None:
            self.met.look(x)
        if self.quantizer is None:
            return x
        return self.quantizer(x, training=training)

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Hook":
        return _Hook(None)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Hook, (None,)
