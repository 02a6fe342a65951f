"""Data sets in their official binary formats (never pickles), held in memory as uint8 tensors.

| name          | files below the data folder                           | origin                                       |
|---------------|-------------------------------------------------------|----------------------------------------------|
| cifar10       | cifar-10-batches-bin/ or cifar-10-binary.tar.gz       | https://www.cs.toronto.edu/~kriz/cifar.html  |
| cifar100      | cifar-100-binary/ or cifar-100-binary.tar.gz          | https://www.cs.toronto.edu/~kriz/cifar.html  |
| mnist         | mnist/{train,t10k}-{images-idx3,labels-idx1}-ubyte.gz | https://yann.lecun.com/exdb/mnist/           |
| fashion-mnist | fashion-mnist/, the same four names                   | github.com/zalandoresearch/fashion-mnist     |
| digits        | comes with scikit-learn                               |                                              |
"""

import gzip
import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recipes.common.download import DataError, Remote, extract, fetch

CIFAR_PIXELS = (3, 32, 32)


@dataclass(frozen=True)
class Pictures:
    """Labelled pictures: images uint8 [number, channels, height, width], labels int64 [number] below `classes`."""

    images: Tensor
    labels: Tensor
    classes: int

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of a picture."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def first(self, number: int | None) -> "Pictures":
        """The first `number` pictures; all of them if None."""
        if number is not None and not 1 <= number <= len(self):
            raise ValueError(f"number must lie between 1 and the {len(self)} pictures, got {number}")
        return Pictures(self.images[:number], self.labels[:number], self.classes)

    def to(self, device: torch.device | str) -> "Pictures":
        """The same pictures on `device`."""
        return Pictures(self.images.to(device), self.labels.to(device), self.classes)

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel, float32 [channels], in pixel values 0 to 255."""
        channels = self.images.shape[1]
        counts = torch.stack([torch.bincount(self.images[:, i].flatten(), minlength=256) for i in range(channels)])
        values = torch.arange(256, dtype=torch.float64, device=counts.device)
        total = counts.sum(1)
        mean = (counts * values).sum(1) / total
        deviation = ((counts * values.square()).sum(1) / total - mean.square()).clamp_min(0).sqrt()
        if (deviation == 0).any():
            raise ValueError("a channel has the same value in every pixel, so it cannot be normalised")
        return mean.float(), deviation.float()


@dataclass(frozen=True)
class Cifar:
    """CIFAR-10 or CIFAR-100: records of label bytes followed by 3,072 pixel bytes, channel first.

    Args:
        remote: the archive.
        folder: the folder inside the archive.
        train: file name → number of training pictures. test: file name → number of test pictures.
        label_bounds: number of classes of each label byte; the last label is the one that is used.
    """

    remote: Remote
    folder: str
    train: Mapping[str, int]
    test: Mapping[str, int]
    label_bounds: tuple[int, ...]

    def load(self, folder: Path, *, download: bool = True) -> tuple[Pictures, Pictures]:
        """Return training and test pictures from `folder`, after download and unpacking if they are missing."""
        record = len(self.label_bounds) + math.prod(CIFAR_PIXELS)
        sizes = {f"{self.folder}/{name}": n * record for name, n in (*self.train.items(), *self.test.items())}
        if not all((folder / name).is_file() for name in sizes):
            archive = folder / self.remote.name
            if not archive.exists() and not download:
                raise DataError(
                    f"{folder} lacks {', '.join(n for n in sizes if not (folder / n).is_file())}: put the folder "
                    f"{self.folder} or the archive {self.remote.name} (MD5 {self.remote.md5}) from "
                    f"{self.remote.addresses[0]} there"
                )
            extract(fetch(self.remote, folder), sizes, folder)
        return self._read(folder, self.train), self._read(folder, self.test)

    def _read(self, folder: Path, files: Mapping[str, int]) -> Pictures:
        parts = [read_cifar(folder / self.folder / name, n, self.label_bounds) for name, n in files.items()]
        images, labels = (torch.cat(part) for part in zip(*parts, strict=True))
        return Pictures(images, labels, self.label_bounds[-1])


@dataclass(frozen=True)
class Idx:
    """MNIST or a data set in its format: four gzipped idx files, one channel, ten classes.

    Args:
        remotes: training images, training labels, test images, test labels.
        folder: the folder of the four files, below the data folder.
        numbers: number of training and test pictures.
        side: height and width in pixels.
    """

    remotes: tuple[Remote, ...]
    folder: str
    numbers: tuple[int, int] = (60_000, 10_000)
    side: int = 28

    def load(self, folder: Path, *, download: bool = True) -> tuple[Pictures, Pictures]:
        """Return training and test pictures from `folder`, after download if they are missing."""
        own = folder / self.folder
        for remote in self.remotes:
            if not (own / remote.name).is_file():
                if not download:
                    raise DataError(
                        f"{own} lacks {remote.name}: put the file (MD5 {remote.md5}) from {remote.addresses[0]} there"
                    )
                fetch(remote, own)
        paths = [own / remote.name for remote in self.remotes]
        return self._read(*paths[:2], self.numbers[0]), self._read(*paths[2:], self.numbers[1])

    def _read(self, images: Path, labels: Path, number: int) -> Pictures:
        pixels = read_idx(images, (number, self.side, self.side))
        classes = read_idx(labels, (number,))
        _check_labels(labels, classes, 10)
        return Pictures(pixels.unsqueeze(1), classes.long(), 10)


def read_cifar(path: Path, records: int, label_bounds: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Read images uint8 [records, 3, 32, 32] and their last labels int64 [records] from one binary CIFAR file.

    Raises:
        DataError: the file has another size, or a label is out of bounds.
    """
    width = len(label_bounds) + math.prod(CIFAR_PIXELS)
    if (size := path.stat().st_size) != records * width:
        raise DataError(f"{path} has {size} bytes instead of {records} records of {width}: truncated, or another file")
    table = torch.from_numpy(np.fromfile(path, dtype=np.uint8)).view(records, width)
    labels, pixels = table.tensor_split([len(label_bounds)], dim=1)
    for column, bound in enumerate(label_bounds):
        _check_labels(path, labels[:, column], bound)
    return pixels.reshape(records, *CIFAR_PIXELS), labels[:, -1].long()


def read_idx(path: Path, shape: tuple[int, ...]) -> Tensor:
    """Read a uint8 tensor of `shape` from a gzipped idx file: magic number, type 0x08, dimensions, sizes, bytes.

    Raises:
        DataError: the file is not a gzip file, is truncated, or its header names another type or shape.
    """
    header = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)
    expected = len(header) + math.prod(shape)
    try:
        with gzip.open(path, "rb") as file:
            start = file.read(len(header))
            if start != header:
                raise DataError(f"{path} begins with {start.hex()} instead of {header.hex()}: no idx file of {shape}")
            content = file.read(expected - len(header) + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} cannot be unpacked ({error}): delete it and fetch it again") from error
    if len(content) != expected - len(header):
        raise DataError(f"{path} does not hold the {math.prod(shape)} bytes that its header announces")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).view(shape)


def digits() -> tuple[Pictures, Pictures]:
    """scikit-learn's digits: 8×8 real handwritten digits with values 0 to 16, 1,437 to train and 360 to test."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    images = torch.from_numpy(bunch.images.astype(np.uint8)[order]).unsqueeze(1)
    labels = torch.from_numpy(bunch.target.astype(np.int64)[order])
    return Pictures(images[:1437], labels[:1437], 10), Pictures(images[1437:], labels[1437:], 10)


def _check_labels(path: Path, labels: Tensor, bound: int) -> None:
    if (highest := int(labels.max())) >= bound:
        raise DataError(f"{path} holds the label {highest}, but there are only {bound} classes: another file")


def _idx(folder: str, checksums: str, *addresses: str) -> Idx:
    names = [f"{split}-{kind}-ubyte.gz" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    pairs = zip(names, checksums.split(), strict=True)
    return Idx(tuple(Remote(name, md5, 1 << 26, addresses) for name, md5 in pairs), folder)


TORONTO = "https://www.cs.toronto.edu/~kriz/"
DATA_SETS: dict[str, Cifar | Idx] = {
    "cifar10": Cifar(
        Remote("cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530", 1 << 28, (TORONTO,)),
        "cifar-10-batches-bin",
        {f"data_batch_{i}.bin": 10_000 for i in range(1, 6)},
        {"test_batch.bin": 10_000},
        (10,),
    ),
    "cifar100": Cifar(
        Remote("cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8", 1 << 28, (TORONTO,)),
        "cifar-100-binary",
        {"train.bin": 50_000},
        {"test.bin": 10_000},
        (20, 100),
    ),
    "mnist": _idx(
        "mnist",
        "f68b3c2dcbeaaa9fbdd348bbdeb94873 d53e105ee54ea40749a09fcbcd1e9432 "
        "9fb629c4189551a2d022fa330f9573f3 ec29112dd5afa0611ce80d1b7f02629c",
        "https://yann.lecun.com/exdb/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    "fashion-mnist": _idx(
        "fashion-mnist",
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d 25c81989df183df01b3e8a0aad5dffbe "
        "bef4ecab320f06d8554ea6380940ec79 bb300cfdad3c16e7a12a480ee83cd310",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    ),
}


def load(name: str, folder: str | Path, *, download: bool = True) -> tuple[Pictures, Pictures]:
    """Return training and test pictures of the data set `name`, read from `folder`.

    Args:
        name: a key of `DATA_SETS`, or "digits", which needs no folder.
        download: whether missing files may be downloaded.

    Raises:
        ValueError: there is no such data set.
        DataError: a file is missing, truncated or not what its name says; the message says which file to put where.
    """
    if name == "digits":
        return digits()
    if name not in DATA_SETS:
        raise ValueError(f"name must be one of {', '.join([*DATA_SETS, 'digits'])}, got {name!r}")
    return DATA_SETS[name].load(Path(folder), download=download)
