"""The forward pass of a layer whose products may run in a short type."""

from typing import Any

import torch
from torch import Tensor, nn

from adapt import torch_internals
from adapt.execution.float32_boundary import Float32Boundary
from adapt.execution.products import Geometry
from adapt.execution.reduced_product import reduced_product
from adapt.layers.products import TransposedLinear


class ReducedLayer:
    """Replaces a layer's forward, which runs in the short type if the layer's word fits, otherwise in float32.

    In a copied or pickled module, it calls the forward of the module's class.
    """

    def __init__(
        self, module: nn.Module, fits: Tensor, index: int, dtype: torch.dtype, backward: bool, boundary: Float32Boundary
    ) -> None:
        self.module: Any = module
        self.fits, self.index, self.dtype = fits, index, dtype
        # The same memory, but faster to read through NumPy.
        self._flags = fits.numpy()
        self._backward, self._boundary = backward, boundary
        self._is_transposed = isinstance(module, TransposedLinear)
        self.active = True

    def __call__(self, input: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not self.active:
            return self._float32(input, *args, **kwargs)
        if torch.compiler.is_compiling() or not torch.is_autocast_enabled(input.device.type):
            return self._run(input, *args, **kwargs)
        # autocast may use another short type, and also for layers that do not fit.
        with torch.autocast(input.device.type, enabled=False):
            return self._run(input, *args, **kwargs)

    def _float32(self, *args: Any, **kwargs: Any) -> Any:
        return type(self.module).forward(self.module, *args, **kwargs)

    def _run(self, input: Tensor, *args: Any, **kwargs: Any) -> Any:
        compiling = torch.compiler.is_compiling()
        if not compiling and not self._flags[self.index]:
            return self._float32(input.float(), *args, **kwargs)
        x, geometry = Geometry.of(self.module, input, *args, **kwargs)
        weight = self.module.weight
        y = reduced_product(
            x,
            weight.t() if self._is_transposed else weight,
            self.module.bias,
            geometry,
            self.dtype,
            backward=self._backward,
            fits=self.fits,
            index=self.index,
        )
        if geometry is not None and input.dim() < x.dim():
            y = y.squeeze(0)
        # A pass within backward is repeated by activation checkpointing, without the modules around the layer.
        inside = compiling or self._boundary.depth or torch_internals.backward_pass() != -1
        return y if inside else y.float()

    def __getstate__(self) -> dict[str, Any]:
        return {"module": self.module, "active": False}
