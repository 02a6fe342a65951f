"""Round the inputs of layers with a learned step and range, through hooks on the layers."""

import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adapt.layers.hooks import is_drawn, remove_all, require_plain, with_input
from adapt.layers.naming import owners
from adapt.layers.products import ACTIVATIONS_STAY, EMBEDDINGS, PRODUCTS, warn_of_others
from adapt.layers.view import Pin
from adapt.learned.format_table import FormatTable
from adapt.learned.straight_through import Quantizer
from adapt.numerics.nearest import TYPES

PERCENTILE = 99.99
"""Percentage of an activation's magnitudes within its initial range."""


def percentile(x: Tensor) -> float:
    """Return the 99.99th percentile of |x| over the finite elements; 0 if there is none."""
    magnitudes = x.detach().abs().flatten().float().cpu().numpy()
    magnitudes = magnitudes[np.isfinite(magnitudes)]
    if not magnitudes.size:
        return 0.0
    place = min(int(np.ceil(magnitudes.size * PERCENTILE / 100)), magnitudes.size) - 1
    return float(np.partition(magnitudes, place)[place])


SAMPLE = 2**15
"""At most so many values of a site are kept from one pass of calibration."""


class SiteStatistics:
    """Statistics that calibration collects at one site, which is the input of one layer.

    Attributes:
        samples: the number of samples in the present batch.
        percentiles: the 99.99th percentile of the magnitudes, for each pass with finite values.
        values: evenly spaced finite values other than zero of each of these passes, at most `SAMPLE`, on the host.
        negative: whether a value was below zero.
        elements: the most elements per sample in any pass.
    """

    def __init__(self) -> None:
        self.percentiles: list[float] = []
        self.values: list[Tensor] = []
        self.negative = False
        self.samples, self.elements = 1, 0.0

    def observe(self, x: Tensor) -> None:
        """Add the values of one pass."""
        x = x.detach()
        finite = x.isfinite()
        if finite.any():
            self.percentiles.append(percentile(x))
            # Rounding zeros costs nothing, so they do not matter for the step of least squared error.
            values = x[finite & (x != 0)]
            self.values.append(values[:: -(-len(values) // SAMPLE) or 1].float().cpu())
        self.negative |= bool((x < 0).any())
        self.elements = max(self.elements, x.numel() / self.samples)


class SitePeaks:
    """The extremes of the values at one site in training.

    Args:
        peaks: the largest −x and the largest x so far, float32 [2], updated in place.

    Attributes:
        elements: the most elements per sample in any pass; samples lie along the first dimension.
    """

    def __init__(self, peaks: Tensor) -> None:
        self._peaks, self.elements = peaks, 0

    def observe(self, x: Tensor) -> None:
        """Add the values of one pass."""
        low, high = x.detach().aminmax()
        self._peaks.copy_(torch.maximum(self._peaks, torch.stack([-low, high]).float()))
        self.elements = max(self.elements, x.numel() // x.shape[0] if x.ndim else 1)


class InputQuantizers:
    """Rounds the inputs of the linear layers and convolutions whose weights are quantised.

    Other modules with a quantised weight keep their activations in float32. Hooks cannot reach the inner values of
    recurrent layers and attention, so a warning names these; an embedding's output is on its weight's grid already.

    Programs of torch.compile and torch.export contain the rounding as an operator.

    Backward saves the unrounded values, not a rounded copy or a mask: a ReLU before the layer saves the same tensor
    anyway, and backward recomputes what it needs from it.

    Args:
        module: the module whose layers to hook.
        weights: the names of the quantised weights by their ids.
        pin: the view that a context asks for; nothing is rounded for "masters".

    Attributes:
        names: the sites' names: the weight's name plus ".input".
    """

    def __init__(self, module: nn.Module, weights: Mapping[int, str], pin: Pin) -> None:
        # Attention never calls its projection's forward; it uses the weight itself.
        inner = "NonDynamicallyQuantizableLinear"
        found = [pair for pair in owners(module, PRODUCTS, weights) if type(pair[1]).__name__ != inner]
        lookups = (part for part in module.modules() if isinstance(part, EMBEDDINGS))
        warn_of_others(module, weights, (*(owner for _, owner in found), *lookups), ACTIVATIONS_STAY)
        self.names = tuple(f"{name}.input" for name, _ in found)
        self._hooks = [_Hook(pin) for _ in found]
        handles = [
            owner.register_forward_pre_hook(hook.before, with_kwargs=True)
            for (_, owner), hook in zip(found, self._hooks, strict=True)
        ]
        self._remove = weakref.finalize(self, remove_all, handles)
        # Something in every pass's graph must require grad, even if the input does not.
        self._anchor = torch.zeros((), requires_grad=True)

    def collect_statistics(self) -> list[SiteStatistics]:
        """From now on only collect statistics of the inputs; return the object that collects them for each site."""
        observers = [SiteStatistics() for _ in self._hooks]
        for hook, one in zip(self._hooks, observers, strict=True):
            hook.quantizer, hook.observer, hook.in_training = None, one, False
        return observers

    def record_peaks(self, peaks: Tensor) -> list[SitePeaks]:
        """From now on only record the peaks of the inputs in training, in place in `peaks`, [sites, 2]."""
        observers = [SitePeaks(peaks[i]) for i in range(len(self._hooks))]
        for hook, one in zip(self._hooks, observers, strict=True):
            hook.quantizer, hook.observer, hook.in_training = None, one, True
        return observers

    def quantize(self, formats: FormatTable, scaling: str, delta: float) -> None:
        """From now on round to these formats, which contain the sites by name."""
        for name, hook in zip(self.names, self._hooks, strict=True):
            hook.observer = None
            hook.quantizer = Quantizer(formats, formats.places[name].start, scaling, delta, self._anchor)

    def follow_pin(self) -> None:
        """Do nothing: each hook reads the pin itself."""

    def remove(self) -> None:
        """Remove the hooks."""
        self._remove()


class _Hook:
    """The hook of one layer. Its copies do nothing, so copied or pickled models do not round."""

    def __init__(self, pin: Pin) -> None:
        self._pin = pin
        self.observer: SiteStatistics | SitePeaks | None = None
        self.in_training = False
        self.quantizer: Quantizer | None = None

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
        """Round the layer's input."""
        return with_input(args, kwargs, lambda x: self._apply(x, module.training))

    def _apply(self, x: Any, training: bool) -> Any:
        if (self.observer is None and self.quantizer is None) or not isinstance(x, Tensor) or x.dtype not in TYPES:
            return x
        if not torch.compiler.is_compiling():
            if is_drawn():
                return x
            require_plain()
        if not x.numel():
            return x
        if self.observer is not None and (training or not self.in_training):
            self.observer.observe(x)
        if self.quantizer is None or self._pin.view == "masters":
            return x
        return self.quantizer(x, training=training)

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Hook":
        return _Hook(Pin())

    def __reduce__(self) -> tuple[Any, ...]:
        return _Hook, (Pin(),)
