"""Networks of the literature, for 224×224 pictures and 1000 classes, without weights: shapes and counts are all."""

import torch
from torch import nn


def convolution(inputs, outputs, kernel, stride=1, groups=1):
    """A convolution that pads to keep the size, batch normalisation, and a ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class Sum(nn.Module):
    """The sum of what several paths make of the same input."""

    def __init__(self, *paths):
        super().__init__()
        self.paths = nn.ModuleList(paths)

    def forward(self, x):
        return sum(path(x) for path in self.paths)


def residual(inputs, outputs, stride, path):
    return Sum(path, nn.Identity() if stride == 1 and inputs == outputs else convolution(inputs, outputs, 1, stride))


def resnet18():
    """He et al. 2015, table 1, 18 layers."""
    layers, before = [convolution(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)], 64
    for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        for s in (stride, 1):
            path = (convolution(before, width, 3, s), convolution(width, width, 3))
            layers.append(residual(before, width, s, nn.Sequential(*path)))
            before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 1000))


def resnet50(multiplier=1.0):
    """He et al. 2015, table 1, 50 layers; AQT's filter multiplier scales the filters of every convolution."""
    before = round(64 * multiplier)
    layers = [convolution(3, before, 7, 2), nn.MaxPool2d(3, 2, 1)]
    for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        narrow, wide = round(width * multiplier), round(4 * width * multiplier)
        for s in (stride, *[1] * (blocks - 1)):
            path = (convolution(before, narrow, 1), convolution(narrow, narrow, 3, s), convolution(narrow, wide, 1))
            layers.append(residual(before, wide, s, nn.Sequential(*path)))
            before = wide
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 1000))


class SqueezeExcitation(nn.Module):
    def __init__(self, channels, squeezed):
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))


def efficientnet_b0():
    """Tan and Le 2019, table 1."""
    layers, before = [convolution(3, 32, 3, 2)], 32
    for factor, outputs, repeats, stride, kernel in (
        (1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5), (6, 192, 4, 2, 5),
        (6, 320, 1, 1, 3),
    ):  # fmt: skip
        for s in (stride, *[1] * (repeats - 1)):
            wide = factor * before
            path = nn.Sequential(
                *([convolution(before, wide, 1)] if factor > 1 else []),
                convolution(wide, wide, kernel, s, groups=wide),
                SqueezeExcitation(wide, before // 4),
                convolution(wide, outputs, 1)[:2],
            )
            layers.append(Sum(path, nn.Identity()) if s == 1 and before == outputs else path)
            before = outputs
    layers.append(convolution(before, 1280, 1))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000))
