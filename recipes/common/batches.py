"""Mini-batches of pictures in memory: shuffled, cropped, flipped and normalised on the fly."""

import math
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recipes.common.data import Pictures


class Batches:
    """An iterable of (x float32 [batch, channels, height, width] in channels-last memory, labels int64 [batch]).

    Everything random about epoch k follows from (seed, k) alone, through a separate generator on the CPU, so a resumed
    run sees the same pictures as an uninterrupted one, on any device. Iterating yields the epoch chosen by `set_epoch`,
    0 at first. A Lightning trainer accepts the object as a data loader and sets the epoch itself.

    Args:
        pictures: the split, on the device of the batches.
        batch_size: pictures per batch. Shuffled batches all have this size, and an epoch leaves out the remaining
            pictures; batches in order contain every picture, and the last batch may be smaller.
        mean, deviation: float32 [channels], from `Pictures.statistics` of the training split.
        shuffle: whether the order changes from epoch to epoch.
        padding: zero pixels on each side before a random crop to the original size; 0: no crop.
        flip: whether half of the pictures are mirrored.
        seed: of the order, the crops and the flips.

    Raises:
        ValueError: `batch_size` is below 1, or shuffled batches are larger than the split.
    """

    def __init__(
        self,
        pictures: Pictures,
        batch_size: int,
        mean: Tensor,
        deviation: Tensor,
        *,
        shuffle: bool = False,
        padding: int = 0,
        flip: bool = False,
        seed: int = 0,
    ) -> None:
        if batch_size < 1 or (shuffle and batch_size > len(pictures)):
            raise ValueError(f"batch_size must lie between 1 and the {len(pictures)} pictures, got {batch_size}")
        self.pictures = pictures
        self.batch_size = batch_size
        self.mean = mean.to(pictures.images.device).view(1, -1, 1, 1)
        self.scale = deviation.to(pictures.images.device).view(1, -1, 1, 1).reciprocal()
        self.shuffle = shuffle
        self.padding = padding
        self.flip = flip
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        share = len(self.pictures) / self.batch_size
        return math.floor(share) if self.shuffle else math.ceil(share)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration yields."""
        self.epoch = epoch

    # A Lightning trainer calls `set_epoch` on a DataLoader's samplers.
    batch_sampler = None

    @property
    def sampler(self) -> "Batches":
        """The object itself, because it chooses the order."""
        return self

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        images, labels = self.pictures.images, self.pictures.labels
        number, device = len(self.pictures), images.device
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch))
        # All draws of the epoch at once: one transfer to the device instead of three per batch.
        order = torch.randperm(number, generator=generator) if self.shuffle else torch.arange(number)
        corners = torch.randint(2 * self.padding + 1, (number, 2), generator=generator).to(device)
        mirrored = (torch.rand(number, generator=generator) < 0.5).to(device)
        order = order.to(device)
        for i in range(len(self)):
            batch = slice(i * self.batch_size, (i + 1) * self.batch_size)
            x = images[order[batch]]
            if self.padding or self.flip:
                flips = mirrored[batch] if self.flip else torch.zeros_like(mirrored[batch])
                x = crop(x, corners[batch], flips, self.padding)
            x = x.to(torch.float32, memory_format=torch.channels_last).sub_(self.mean).mul_(self.scale)
            yield x, labels[order[batch]]


def crop(images: Tensor, corners: Tensor, mirrored: Tensor, padding: int) -> Tensor:
    """Pad each picture with zeros, cut the original size out at its own corner, and mirror it if asked.

    Args:
        images: uint8 [batch, channels, height, width].
        corners: int64 [batch, 2], row and column of the upper left corner in the padded picture, 0 to 2·padding.
        mirrored: bool [batch].

    Returns:
        uint8 [batch, channels, height, width].
    """
    batch, channels, height, width = images.shape
    padded = F.pad(images, (padding,) * 4)
    rows = corners[:, :1] + torch.arange(height, device=images.device)
    columns = corners[:, 1:] + torch.arange(width, device=images.device)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    places = rows[:, :, None] * (width + 2 * padding) + columns[:, None, :]
    places = places.view(batch, 1, -1).expand(-1, channels, -1)
    return padded.flatten(2).gather(2, places).view(images.shape)


def epoch_seed(seed: int, epoch: int) -> int:
    """A seed for an epoch, unrelated to those of neighbouring runs and epochs."""
    return int(np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0])
