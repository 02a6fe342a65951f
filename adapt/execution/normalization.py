"""Batch normalisation of bfloat16 activations on the CPU, with float32 parameters and statistics."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from adapt.kernels import name_for

NORMALIZATIONS = {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d}


def can_normalize(module: Any, x: Tensor) -> bool:
    """Whether `normalize` does what the module's own forward does: training, plain settings, channels last."""
    parts = (module.weight, module.bias, module.running_mean, module.running_var)
    return (
        module.training
        and module.momentum is not None
        and x.dtype == torch.bfloat16
        and x.device.type == "cpu"
        and _channels_are_innermost(x)
        and x.numel() > x.shape[1]
        and x.shape[1] == module.num_features
        and all(part is not None and part.dtype == torch.float32 for part in parts)
        and name_for("cpu") == "numba"
    )


def normalize(module: Any, x: Tensor) -> Tensor:
    """Batch normalisation of a training step: y = γ·(x − μ)/√(σ² + ε) + β, and the running statistics move.

    μ and σ² are those of the batch, summed in float32 and float64; y is rounded once, to bfloat16, and so is the
    gradient of x.

    Args:
        module: the `nn.BatchNorm` whose parameters, statistics and settings count.
        x: bfloat16 [batch, channels, …] with the channels innermost in memory.

    Returns:
        bfloat16, laid out as `x`.
    """
    module.num_batches_tracked.add_(1)
    return _Normalize.apply(x, module.weight, module.bias, module)  # type: ignore[no-any-return, no-untyped-call]


def _channels_are_innermost(x: Tensor) -> bool:
    if x.dim() == 2:
        return x.is_contiguous()
    if x.dim() == 4:
        return x.is_contiguous(memory_format=torch.channels_last)
    return x.dim() == 5 and x.is_contiguous(memory_format=torch.channels_last_3d)


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, module: Any) -> Tensor:
        from adapt.kernels.numba_ import normalization as kernels

        source, gamma, beta = x.detach(), weight.detach().numpy(), bias.detach().numpy()
        running_mean, running_variance = module.running_mean.numpy(), module.running_var.numpy()
        count = x.numel() // len(gamma)
        mean, variance = kernels.moments(source, running_mean)
        running_mean += module.momentum * (mean - running_mean)
        running_variance += module.momentum * (variance * (count / (count - 1)) - running_variance)
        inverse = 1 / np.sqrt(variance + module.eps)
        ctx.save_for_backward(x, weight)
        ctx.statistics = mean, inverse
        output = torch.empty_like(source)
        kernels.scale(source, output, gamma * inverse, beta - gamma * inverse * mean)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, error: Tensor) -> tuple[Tensor | None, ...]:
        from adapt.kernels.numba_ import normalization as kernels

        x, weight = ctx.saved_tensors
        mean, inverse = ctx.statistics
        count = x.numel() // len(mean)
        output = torch.empty_like(x)
        if error.stride() != output.stride():
            error = output.copy_(error)
        sums, products = kernels.product_sums(error, x, mean)
        # With x̂ = (x − μ)/σ: of x it is γ/σ·(g − mean(g) − x̂·mean(g·x̂)).
        factor = weight.detach().numpy() * inverse
        slope = -factor * inverse**2 * products / count
        kernels.combine(error, x, output, factor, slope, -factor * sums / count - slope * mean)
        return output, torch.from_numpy(products * inverse).float(), torch.from_numpy(sums).float(), None
