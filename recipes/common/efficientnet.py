"""A light EfficientNet with ReLU for 32×32 pictures (trade-off paper, section 4.1 and table 2)."""

import torch.nn.functional as F
from torch import Tensor, nn

import adapt
from recipes.common.models import Shape

STEM = 8
STAGES = (
    (1, 8, 1, 1, 3), (6, 12, 2, 2, 3), (6, 20, 2, 2, 5), (6, 36, 3, 2, 3), (6, 48, 3, 1, 5), (6, 80, 1, 1, 3),
)  # fmt: skip
"""(expansion, channels, blocks, stride, kernel) of each stage: those of EfficientNet-B0, narrower and without its first
halving of the picture."""
HEAD = 176


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    options = {"stride": stride, "padding": kernel // 2, "groups": groups, "bias": False}
    return [nn.Conv2d(inputs, outputs, kernel, **options), nn.BatchNorm2d(outputs)]  # type: ignore[arg-type]


class SqueezeExcitation(nn.Module):
    """Scales each channel by a gate computed from the means of all (Hu et al. 2018)."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channels, height, width] to the same."""
        gates: Tensor = self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))).sigmoid()
        return x * gates


class MBConv(nn.Module):
    """1×1 convolution to `factor` times the channels, a depthwise one, gates, 1×1 without an activation; a shortcut if
    shapes allow it (Tan and Le 2019, table 1)."""

    def __init__(self, inputs: int, outputs: int, stride: int, factor: int, kernel: int) -> None:
        super().__init__()
        wide = factor * inputs
        widen = [*_convolution(inputs, wide, 1), nn.ReLU(inplace=True)]
        self.shortcut = stride == 1 and inputs == outputs
        self.path = nn.Sequential(
            *(widen if factor > 1 else ()),
            *_convolution(wide, wide, kernel, stride, wide),
            nn.ReLU(inplace=True),
            SqueezeExcitation(wide, max(inputs // 4, 1)),
            *_convolution(wide, outputs, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[batch, inputs, height, width] to [batch, outputs, height / stride, width / stride]."""
        y: Tensor = self.path(x)
        return x + y if self.shortcut else y


def light_efficientnet(
    classes: int = 10, shape: Shape = (3, 32, 32), *, width: float = 1.0, depth: float = 1.0
) -> nn.Sequential:
    """The largest activation is that of the first expansion, 48 channels of whole pictures.

    Args:
        width, depth: multipliers of all channels, and of the blocks of each stage.
    """

    def scaled(number: int, factor: float) -> int:
        return max(round(number * factor), 1)

    before, head = scaled(STEM, width), scaled(HEAD, width)
    layers: list[nn.Module] = [*_convolution(shape[0], before, 3), nn.ReLU(inplace=True)]
    for factor, channels, blocks, stride, kernel in STAGES:
        outputs = scaled(channels, width)
        for i in range(scaled(blocks, depth)):
            layers.append(MBConv(before, outputs, stride if i == 0 else 1, factor, kernel))
            before = outputs
    layers += [*_convolution(before, head, 1), nn.ReLU(inplace=True)]
    return adapt.tnvs_(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(head, classes)))
