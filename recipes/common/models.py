"""The networks of the papers' experiments, for pictures of shape (channels, height, width), initialised by TNVS.

The convolutions and dense layers are quantised; batch normalisation stays float32.
"""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

import adapt

Shape = tuple[int, int, int]

WITHOUT_NORMALISATION = 2.0
"""TNVS scale of networks without batch normalisation. A ReLU halves the variance: at scale 0.5 the signal of AlexNet
shrinks 250-fold up to the last layer, and plain float32 SGD does not start to learn."""


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


def resnet(
    classes: int = 10, shape: Shape = (3, 32, 32), *, blocks: int | tuple[int, int, int] = 3, multiplier: float = 1.0
) -> nn.Sequential:
    """ResNet-20 (He et al. 2015, section 4.2) with the parameter-free shortcut, option A. 0.27 M parameters.

    Args:
        blocks: of each of the three stages; the network has two layers for each block and two more.
        multiplier: of the numbers of filters, which are 16, 32 and 64 in the stages at 1.
    """
    stages = [max(round(filters * multiplier), 1) for filters in (16, 32, 64)]
    counts = (blocks,) * 3 if isinstance(blocks, int) else blocks
    widths = [filters for filters, count in zip(stages, counts, strict=True) for _ in range(count)]
    body = [
        _Block(before, width, stride=1 if before == width else 2)
        for before, width in zip([stages[0], *widths], widths, strict=False)
    ]
    return adapt.tnvs_(
        nn.Sequential(
            nn.Conv2d(shape[0], stages[0], 3, padding=1, bias=False),
            nn.BatchNorm2d(stages[0]),
            nn.ReLU(inplace=True),
            *body,
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(stages[-1], classes),
        )
    )


class _InvertedResidual(nn.Module):
    """1×1 convolution to `factor` times the channels, 3×3 depthwise, 1×1 without an activation; a shortcut if shapes
    allow it (Sandler et al. 2018, section 3.3)."""

    def __init__(self, inputs: int, outputs: int, stride: int, factor: int) -> None:
        super().__init__()
        wide = factor * inputs
        widen = [nn.Conv2d(inputs, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(inplace=True)]
        self.shortcut = stride == 1 and inputs == outputs
        self.path = nn.Sequential(
            *(widen if factor > 1 else ()),
            nn.Conv2d(wide, wide, 3, stride=stride, padding=1, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU6(inplace=True),
            nn.Conv2d(wide, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[batch, inputs, height, width] to [batch, outputs, height / stride, width / stride]."""
        return x + self.path(x) if self.shortcut else self.path(x)


def mobilenet_v2(classes: int = 10, shape: Shape = (3, 32, 32), *, width: float = 1.0) -> nn.Module:
    """MobileNetV2 (Sandler et al. 2018, table 2) for 32×32 pictures, so its first and last strides are 1.

    Args:
        width: multiplier of all channels, which stay multiples of 8. 2.2 M parameters at 1, 0.16 M at ¼.
    """

    def channels(number: int) -> int:
        return max(8, round(number * width / 8) * 8)

    stem, head = channels(32), channels(1280)
    layers: list[nn.Module] = [
        nn.Conv2d(shape[0], stem, 3, padding=1, bias=False), nn.BatchNorm2d(stem), nn.ReLU6(inplace=True)
    ]  # fmt: skip
    before = stem
    for factor, outputs, repeats, stride in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 1), (6, 320, 1, 1),
    ):  # fmt: skip
        for i in range(repeats):
            layers.append(_InvertedResidual(before, channels(outputs), stride if i == 0 else 1, factor))
            before = channels(outputs)
    layers += [nn.Conv2d(before, head, 1, bias=False), nn.BatchNorm2d(head), nn.ReLU6(inplace=True)]
    return adapt.tnvs_(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(head, classes)))


def _convolution(inputs: int, outputs: int, kernel: int = 3, **options: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, kernel, **options), nn.ReLU(inplace=True)


def _dense(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Linear(inputs, outputs), nn.ReLU(inplace=True)


def alexnet(classes: int = 10, shape: Shape = (3, 32, 32)) -> nn.Module:
    """AlexNet for 32×32 pictures: the five convolutions with 3×3 kernels, then 1024-1024-classes. 4.4 M parameters."""
    channels, height, width = shape
    return adapt.tnvs_(
        nn.Sequential(
            *_convolution(channels, 64, stride=2, padding=1),
            nn.MaxPool2d(2),
            *_convolution(64, 192, padding=1),
            nn.MaxPool2d(2),
            *_convolution(192, 384, padding=1),
            *_convolution(384, 256, padding=1),
            *_convolution(256, 256, padding=1),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.5),
            *_dense(256 * (height // 16) * (width // 16), 1024),
            nn.Dropout(0.5),
            *_dense(1024, 1024),
            nn.Linear(1024, classes),
        ),
        scale=WITHOUT_NORMALISATION,
    )


def lenet5(classes: int = 10, shape: Shape = (3, 32, 32)) -> nn.Module:
    """LeNet-5 with ReLU and max pooling; 28×28 pictures are padded to 32×32 first. 62 k parameters."""
    channels, height, _ = shape
    return adapt.tnvs_(
        nn.Sequential(
            *_convolution(channels, 6, 5, padding=(32 - height) // 2),
            nn.MaxPool2d(2),
            *_convolution(6, 16, 5),
            nn.MaxPool2d(2),
            nn.Flatten(),
            *_dense(400, 120),
            *_dense(120, 84),
            nn.Linear(84, classes),
        ),
        scale=WITHOUT_NORMALISATION,
    )


def mlp(classes: int = 10, shape: Shape = (1, 28, 28)) -> nn.Module:
    """Three hidden layers of 512 units. 0.93 M parameters on 28×28 pictures."""
    inputs = shape[0] * shape[1] * shape[2]
    layers = (*_dense(inputs, 512), *_dense(512, 512), *_dense(512, 512), nn.Linear(512, classes))
    return adapt.tnvs_(nn.Sequential(nn.Flatten(), *layers), scale=WITHOUT_NORMALISATION)


def small_cnn(classes: int = 10, shape: Shape = (1, 8, 8)) -> nn.Module:
    """Three convolutions and a dense layer, for the 8×8 digits. 21 k parameters."""
    channels, height, width = shape
    return adapt.tnvs_(
        nn.Sequential(
            *_convolution(channels, 16, padding=1),
            *_convolution(16, 32, padding=1),
            nn.MaxPool2d(2),
            *_convolution(32, 48, padding=1),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(48 * (height // 4) * (width // 4), classes),
        ),
        scale=WITHOUT_NORMALISATION,
    )


class _RowReader(nn.Module):
    """A GRU that reads a picture row by row, and a dense layer on its last state.

    Args:
        features: values in a row.
        state: size of the GRU's state.
    """

    def __init__(self, features: int, state: int, classes: int) -> None:
        super().__init__()
        self.gru = nn.GRU(features, state, batch_first=True)
        self.head = nn.Linear(state, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channels, height, width] to [batch, classes]."""
        rows = x.transpose(1, 2).flatten(2)
        return self.head(self.gru(rows)[0][:, -1])


def gru(classes: int = 10, shape: Shape = (1, 28, 28)) -> nn.Module:
    """A GRU of 128 units that reads pictures as series of rows. 62 k parameters on 28×28 pictures."""
    return adapt.tnvs_(_RowReader(shape[0] * shape[2], 128, classes))


MODELS: dict[str, Callable[[int, Shape], nn.Module]] = {
    "resnet8": partial(resnet, blocks=1),
    "resnet20": resnet,
    "mobilenet-v2": mobilenet_v2,
    "mobilenet-v2-quarter": partial(mobilenet_v2, width=0.25),
    "alexnet": alexnet,
    "lenet5": lenet5,
    "mlp": mlp,
    "small-cnn": small_cnn,
    "gru": gru,
}
