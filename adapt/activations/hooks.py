"""The hooks of a layer that round its input, its output and, in backward, the error."""

from typing import Any

import torch
from torch import Tensor, nn

from adapt.activations import checkpointing
from adapt.activations.straight_through import StraightThrough, quantized
from adapt.kernels.activation import ActivationKernels, SiteTables, mask_size
from adapt.kernels.stream import is_dense
from adapt.layers.hooks import is_drawn, require_plain, with_input
from adapt.numerics.nearest import TYPES


class ActivationHooks:
    """The hooks of one layer. Copies do nothing, so copied or pickled models do not round.

    Args:
        sites: the tables of all sites; None in a copy.
        kernels: the kernels to use.
        fresh: whether the layer's output is a new tensor that nothing else refers to.
        input, output, error: the layer's sites, −1 if there is none.
    """

    idle = False
    """Whether the layer is in float32."""

    def __init__(
        self, sites: SiteTables | None, kernels: ActivationKernels, fresh: bool, input: int, output: int, error: int
    ) -> None:
        self.sites, self.kernels, self.fresh = sites, kernels, fresh
        self.input, self.output, self.error = input, output, error

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
        """Forward pre-hook: round the layer's input."""
        return with_input(args, kwargs, lambda x: self._apply(x, self.input, module.training))

    def after(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Forward hook: round the layer's output."""
        return self._apply(output, self.output, module.training, fresh=self.fresh, error=self.error)

    def _apply(self, x: Any, site: int, training: bool, *, fresh: bool = False, error: int = -1) -> Any:
        sites = self.sites
        if sites is None or not isinstance(x, Tensor) or x.dtype not in TYPES:
            return x
        if not training:
            error = -1
        if torch.compiler.is_compiling():
            tables = (sites.formats, sites.keys, sites.drawn, sites.peaks, sites.samples)
            return torch.ops.adapt.quantize_activation(x, *tables, site, error, training)[0]
        if self.idle or is_drawn():
            return x
        if x.is_cpu is not sites.are_on_cpu or x.is_meta:
            # The layer itself will raise an error.
            return x
        require_plain()
        in_place = fresh and not x._is_view() and is_dense(x)
        learning = x.requires_grad and torch.is_grad_enabled()
        mask = torch.empty(mask_size(x.numel()), dtype=torch.uint8, device=x.device) if learning else None
        start = checkpointing.start_in_stream(self, site, sites.drawn) if training else None
        rounded, needed = quantized(
            x, mask, self.kernels, sites, site, training=training, in_place=in_place, start=start
        )
        if in_place:
            torch.autograd.graph.increment_version(x)
        if not learning:
            return x if in_place else rounded
        if in_place and not needed and error < 0:
            return x
        return StraightThrough.apply(  # type: ignore[no-untyped-call]
            x, [] if in_place else [rounded], mask if needed else None, self.kernels, sites, error
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return ActivationHooks, _NOTHING


_NOTHING: tuple[Any, ...] = (None, None, False, -1, -1, -1)
