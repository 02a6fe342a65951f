"""The networks of the papers' experiments, for pictures of shape (channels, height, width), initialised by TNVS.

Quantised layers are the convolutions and the dense layers; batch normalisation stays float32.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

import adapt

Shape = tuple[int, int, int]

WITHOUT_NORMALISATION = 2.0
"""TNVS scale of networks without batch normalisation: a ReLU halves the variance, so at 0.5 the signal of AlexNet has
shrunk 250-fold at the last layer and plain float32 SGD does not get off the ground."""


class _Block(nn.Module):
    """Two 3×3 convolutions and a shortcut without parameters (He et al. 2015, option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.new_channels = outputs - inputs
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, inputs, height, width] to [batch, outputs, height / stride, width / stride]."""
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        if self.stride > 1 or self.new_channels:
            x = x[:, :, :: self.stride, :: self.stride]
            x = F.pad(x, (0, 0, 0, 0, self.new_channels // 2, self.new_channels - self.new_channels // 2))
        return F.relu(x + y)


def resnet20(classes: int = 10, shape: Shape = (3, 32, 32)) -> nn.Module:
    """ResNet-20 (He et al. 2015, section 4.2) with the parameter-free shortcut, option A. 0.27 M parameters."""
    widths = [16] * 3 + [32] * 3 + [64] * 3
    blocks = [
        _Block(before, width, stride=1 if before == width else 2)
        for before, width in zip([16, *widths], widths, strict=False)
    ]
    return adapt.tnvs_(
        nn.Sequential(
            nn.Conv2d(shape[0], 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(inplace=True),
            *blocks,
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(64, classes),
        )
    )


def alexnet(classes: int = 10, shape: Shape = (3, 32, 32)) -> nn.Module:
    """AlexNet for 32×32 pictures: the five convolutions with 3×3 kernels, then 1024-1024-classes. 4.4 M parameters."""
    channels, height, width = shape
    return adapt.tnvs_(
        nn.Sequential(
            nn.Conv2d(channels, 64, 3, stride=2, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(64, 192, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.5),
            nn.Linear(256 * (height // 16) * (width // 16), 1024),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(1024, 1024),
            nn.ReLU(inplace=True),
            nn.Linear(1024, classes),
        ),
        scale=WITHOUT_NORMALISATION,
    )


def lenet5(classes: int = 10, shape: Shape = (3, 32, 32)) -> nn.Module:
    """LeNet-5 with ReLU and max pooling; 28×28 pictures are padded to 32×32 first. 62 k parameters."""
    channels, height, _ = shape
    return adapt.tnvs_(
        nn.Sequential(
            nn.Conv2d(channels, 6, 5, padding=(32 - height) // 2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(400, 120),
            nn.ReLU(inplace=True),
            nn.Linear(120, 84),
            nn.ReLU(inplace=True),
            nn.Linear(84, classes),
        ),
        scale=WITHOUT_NORMALISATION,
    )


def mlp(classes: int = 10, shape: Shape = (1, 28, 28)) -> nn.Module:
    """Three hidden layers of 512 units. 0.93 M parameters on 28×28 pictures."""
    inputs = shape[0] * shape[1] * shape[2]
    return adapt.tnvs_(
        nn.Sequential(
            nn.Flatten(),
            nn.Linear(inputs, 512),
            nn.ReLU(inplace=True),
            nn.Linear(512, 512),
            nn.ReLU(inplace=True),
            nn.Linear(512, 512),
            nn.ReLU(inplace=True),
            nn.Linear(512, classes),
        ),
        scale=WITHOUT_NORMALISATION,
    )


def small_cnn(classes: int = 10, shape: Shape = (1, 8, 8)) -> nn.Module:
    """Three convolutions and a dense layer, for the 8×8 digits. 21 k parameters."""
    channels, height, width = shape
    return adapt.tnvs_(
        nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 48, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(48 * (height // 4) * (width // 4), classes),
        ),
        scale=WITHOUT_NORMALISATION,
    )


MODELS: dict[str, Callable[[int, Shape], nn.Module]] = {
    "resnet20": resnet20,
    "alexnet": alexnet,
    "lenet5": lenet5,
    "mlp": mlp,
    "small-cnn": small_cnn,
}
