"""Captured networks without a training run: random words of given widths in a module of any kind."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adapt.export.bits import smallest_type
from adapt.export.exported import Exported
from adapt.numerics import Precision
from adapt.numerics.format import Format

LAYERS = (nn.Linear, nn.modules.conv._ConvNd)


class ConvNet(nn.Module):
    """Convolution, batch norm, a residual block with a projection, pooling, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(12)
        self.shortcut = nn.Conv2d(8, 12, 1, stride=2, bias=False)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(self.norm2(self.conv2(x)) + self.shortcut(x))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Chars(nn.Module):
    """Two embeddings, attention as torch's function, an MLP with GELU, layer norms, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.characters, self.positions = nn.Embedding(11, 16), nn.Embedding(7, 16)
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.attend, self.gather = nn.Linear(16, 48), nn.Linear(16, 16)
        self.widen, self.narrow = nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 11)

    def forward(self, text: Tensor) -> Tensor:
        x = self.characters(text) + self.positions(torch.arange(text.shape[1], device=text.device))
        parts = self.attend(self.norm1(x)).view(*text.shape, 3, 2, 8).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(*parts.unbind(), is_causal=True)
        x = x + self.gather(y.transpose(1, 2).reshape(x.shape))
        return self.head(x + self.narrow(F.gelu(self.widen(self.norm2(x)))))


def mlp() -> nn.Module:
    """Two dense layers."""
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 5))


def captured(
    module: nn.Module,
    *,
    weights: int,
    activations: int | None = 8,
    outputs: bool = True,
    biases: bool = True,
    channels: bool = False,
    signed: bool = True,
    seed: int = 0,
) -> Exported:
    """Return a captured network whose layers have random words.

    Args:
        weights: bits of a weight's word.
        activations: bits of the layers' inputs and outputs; None rounds none.
        outputs: whether outputs are rounded too.
        biases: whether biases are words as well.
        channels: whether each output channel has its own power-of-two step.
        signed: whether activations are signed.
    """
    generator = np.random.default_rng(seed)
    torch.manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(part.running_mean, std=0.3)
            nn.init.uniform_(part.running_var, 0.5, 2)
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.3)
    formats: dict[str, Format] = {}
    words: dict[str, Tensor] = {}
    for path, layer in module.named_modules():
        prefix = f"{path}." if path else ""
        if not isinstance(layer, (*LAYERS, nn.Embedding)):
            continue
        if channels and isinstance(layer, LAYERS):
            count = layer.weight.shape[0]
            ones = np.ones(count, np.int64)
            steps = 2.0 ** -(weights + generator.integers(-1, 2, count))
            half = 2 ** (weights - 1)
            formats[f"{prefix}weight"] = Format(ones * weights, steps, ones > 0, -half * ones, (half - 1) * ones, 0)
        else:
            formats[f"{prefix}weight"] = Format.of(Precision(weights, weights))
        if biases and getattr(layer, "bias", None) is not None:
            formats[f"{prefix}bias"] = Format.of(Precision(weights, weights))
        if activations is not None:
            signed_input = Format.of(Precision(activations, activations - 3))
            formats[f"{prefix}input"] = signed_input if signed else _unsigned(signed_input)
            if outputs or isinstance(layer, nn.Embedding):
                formats[f"{prefix}output"] = Format.of(Precision(activations, activations - 4))
            if isinstance(layer, nn.Embedding):
                del formats[f"{prefix}input"]
    for name, parameter in module.named_parameters():
        if name not in formats:
            continue
        form = formats[name]
        shape = [1] * parameter.ndim
        if form.axis is not None:
            shape[form.axis] = -1
        low, high = form.low.reshape(shape), form.high.reshape(shape)
        drawn = generator.integers(np.broadcast_to(low, parameter.shape), np.broadcast_to(high, parameter.shape) + 1)
        words[name] = torch.from_numpy(drawn).to(smallest_type(form))
        parameter.data = form.values(words[name])
    tensors = {name: value.detach() for name, value in module.state_dict().items() if name not in words}
    return Exported(words, formats, tensors, structure=module.eval())


def _unsigned(form: Format) -> Format:
    return Format(form.word_length, form.step, np.array(False), np.array(0), np.array(2 ** int(form.word_length) - 1))


def outputs_of(exported: Exported, inputs: Any) -> np.ndarray[Any, Any]:
    """What torch computes."""
    with torch.no_grad():
        return exported.module()(inputs).numpy()
