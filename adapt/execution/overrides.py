"""Forwards that stand in for those of layers, which may run in a short type, and of batch normalisations."""

from typing import Any

import torch
from torch import Tensor, nn

from adapt.execution.nesting import Outermost
from adapt.execution.normalization import can_normalize, normalize
from adapt.execution.products import Geometry
from adapt.execution.reduced_product import Companions, reduced_product


class Override:
    """Stands in for a module's forward. In a copy of the module it is the forward of the copy's class."""

    def __init__(self, module: nn.Module) -> None:
        self.module: Any = module
        self.active = True

    def plain(self, *args: Any, **kwargs: Any) -> Any:
        """What the module's class does."""
        return type(self.module).forward(self.module, *args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {"module": self.module, "active": False}


class ReducedLayer(Override):
    """A layer's forward: in the short type where its word fits, in float32 otherwise."""

    def __init__(
        self,
        module: nn.Module,
        fits: Tensor,
        index: int,
        dtype: torch.dtype,
        backward: bool,
        outermost: Outermost,
    ) -> None:
        super().__init__(module)
        self.fits, self.index, self.dtype = fits, index, dtype
        # The same memory, which answers sooner.
        self.flags = fits.numpy()
        self.backward, self.outermost, self.companions = backward, outermost, Companions()

    def __call__(self, input: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not self.active:
            return self.plain(input, *args, **kwargs)
        if torch.compiler.is_compiling() or not torch.is_autocast_enabled(input.device.type):
            return self.run(input, *args, **kwargs)
        # Which may ask for another short type, and for layers that do not fit.
        with torch.autocast(input.device.type, enabled=False):
            return self.run(input, *args, **kwargs)

    def run(self, input: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The layer's answer, whatever autocast says."""
        compiling = torch.compiler.is_compiling()
        if not compiling and not self.flags[self.index]:
            return self.plain(input.float(), *args, **kwargs)
        x, geometry = Geometry.of(self.module, input, *args, **kwargs)
        y = reduced_product(
            x,
            self.module.weight,
            self.module.bias,
            geometry,
            self.dtype,
            backward=self.backward,
            fits=self.fits,
            index=self.index,
            companions=self.companions,
        )
        if geometry is not None and input.dim() < x.dim():
            y = y.squeeze(0)
        # Inside backward, a pass is one that activation checkpointing repeats.
        keep = compiling or self.outermost.depth or torch._C._current_graph_task_id() != -1
        return y if keep else y.float()

    def watch(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Keep an eye on the layout of the input's gradient."""
        if self.active and args and isinstance(args[0], Tensor) and not torch.compiler.is_compiling():
            self.companions.watch(args[0])


class FastNormalization(Override):
    """The forward of a batch normalisation: its own kernel for bfloat16 where there is one."""

    def __call__(self, input: Tensor) -> Any:
        if self.active and not torch.compiler.is_compiling() and can_normalize(self.module, input):
            return normalize(self.module, input)
        return self.plain(input)
