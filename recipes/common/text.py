"""A text as numbers: its alphabet, a training part, a held-out part, and batches of excerpts."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from recipes.common.batches import epoch_seed
from recipes.common.download import DataError, Remote, fetch

SHAKESPEARE = Remote(
    "input.txt",
    "6fb458f1232090904fb40fe944165e91",
    1 << 22,
    ("https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/",),
)
HELD_OUT = 0.1


@dataclass(frozen=True)
class Text:
    """A text whose characters are numbered.

    Args:
        alphabet: the characters, in the order of their numbers.
        training: int64 [characters], the first nine tenths; held_out: the rest.
        digest: eight hexadecimal digits that tell this text from others.
    """

    alphabet: str
    training: Tensor
    held_out: Tensor
    digest: str

    @classmethod
    def of(cls, content: str) -> "Text":
        """Number the characters and hold out the last tenth.

        Raises:
            ValueError: the text is too short to hold anything out.
        """
        alphabet = "".join(sorted(set(content)))
        places = {character: number for number, character in enumerate(alphabet)}
        numbers = torch.tensor([places[character] for character in content], dtype=torch.int64)
        border = len(numbers) - int(len(numbers) * HELD_OUT)
        if border == len(numbers):
            raise ValueError(f"text must have at least 10 characters, got {len(numbers)}")
        digest = hashlib.sha256(content.encode()).hexdigest()[:8]
        return cls(alphabet, numbers[:border], numbers[border:], digest)

    def to(self, device: torch.device | str) -> "Text":
        """The same text on `device`."""
        return Text(self.alphabet, self.training.to(device), self.held_out.to(device), self.digest)


def load(path: Path, *, address: str | None = None, download: bool = True) -> Text:
    """The text in the file `path`, or tinyshakespeare in the folder `path`, downloaded if it is not there.

    Args:
        address: a folder on the network that mirrors `input.txt`; the checksum stays that of the original.

    Raises:
        DataError: the file is missing, cannot be downloaded, or is not UTF-8 text.
        ValueError: the text is too short.
    """
    if not path.is_file():
        remote = (
            SHAKESPEARE if address is None else Remote(SHAKESPEARE.name, SHAKESPEARE.md5, SHAKESPEARE.limit, (address,))
        )
        if not download and not (path / remote.name).is_file():
            raise DataError(
                f"{path} is neither a text nor a folder with {remote.name}: name a text, or put the file (MD5 "
                f"{remote.md5}) from {remote.addresses[0]} there"
            )
        path = fetch(remote, path)
    try:
        return Text.of(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}") from error


class Excerpts:
    """Batches (x, y) of excerpts from random places, int64 [batch_size, context] each; y is x one character on.

    The places follow from (seed, epoch) alone.

    Args:
        numbers: int64 [characters], the text.
        steps: batches in an epoch.

    Raises:
        ValueError: the text is shorter than an excerpt.
    """

    def __init__(self, numbers: Tensor, *, batch_size: int, context: int, steps: int, seed: int) -> None:
        if context >= len(numbers):
            raise ValueError(f"context must be below the {len(numbers)} characters of the training text, got {context}")
        self.numbers, self.seed, self.epoch = numbers, seed, 0
        self.batch_size, self.context, self.steps = batch_size, context, steps

    def __len__(self) -> int:
        return self.steps

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration yields."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch))
        starts = torch.randint(
            len(self.numbers) - self.context, (self.steps, self.batch_size, 1), generator=generator
        ).to(self.numbers.device)
        window = torch.arange(self.context + 1, device=self.numbers.device)
        for start in starts:
            excerpt = self.numbers[start + window]
            yield excerpt[:, :-1], excerpt[:, 1:]


def windows(numbers: Tensor, context: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut the text into windows (x, y), int64 [1…32, context]; y is x one character on.

    Every character but the first is in exactly one y. A last window that is shorter makes a batch of its own.
    """
    whole = (len(numbers) - 1) // context
    x, y = numbers[: whole * context].view(whole, context), numbers[1 : whole * context + 1].view(whole, context)
    yield from zip(x.split(32), y.split(32), strict=True)
    if whole * context < len(numbers) - 1:
        yield numbers[None, whole * context : -1], numbers[None, whole * context + 1 :]
