"""Keyword spotting on Speech Commands, by a ResNet and by a GRU (the paper's section 4.4)."""

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes.common import speech
from recipes.common.batches import epoch_seed
from recipes.common.models import resnet
from recipes.common.speech import COEFFICIENTS, Words
from recipes.common.training import Data, evaluating

WORDS = 35
"""Words of the data set's second version; how many there are is known before the data are read."""


class Gru(nn.Module):
    """A GRU over the frames of [batch, 1, COEFFICIENTS, frames], and a dense layer on its last state."""

    def __init__(self, classes: int, layers: int, width: int) -> None:
        super().__init__()
        self.recurrent = nn.GRU(COEFFICIENTS, width, layers, batch_first=True)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 1, COEFFICIENTS, frames] to [batch, classes]."""
        _, state = self.recurrent(x[:, 0].transpose(1, 2))
        result: Tensor = self.head(state[-1])
        return result


class Shuffled:
    """Batches (coefficients, labels) in an order that follows from (seed, epoch); the rest of an epoch is left out."""

    def __init__(self, words: Words, batch_size: int, seed: int) -> None:
        self.words, self.batch_size, self.seed, self.epoch = words, min(batch_size, len(words)), seed, 0

    def __len__(self) -> int:
        return len(self.words) // self.batch_size

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration yields."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch))
        order = torch.randperm(len(self.words), generator=generator)[: len(self) * self.batch_size]
        for batch in order.split(self.batch_size):
            yield self.words.coefficients[batch], self.words.labels[batch]


class KeywordsTask:
    """Spoken words and ResNet-20."""

    name, score, unit, larger_is_better, activations = "keywords", "accuracy", "accuracy", True, True
    lr, weight_decay, epochs, subset = 4e-3, 1e-2, 4, 0
    classes = WORDS

    def network(self, width: float, depth: float) -> tuple[nn.Module, Tensor]:
        """ResNet-20 at 1; one block a stage and one filter at least. Stages that come first are the deeper ones."""
        blocks = max(round(9 * depth), 3)
        stages = (blocks + 2) // 3, (blocks + 1) // 3, blocks // 3
        example = torch.zeros(1, 1, COEFFICIENTS, 81)
        return resnet(self.classes, (1, COEFFICIENTS, 81), blocks=stages, multiplier=width), example

    def load(self, folder: Path, *, download: bool) -> None:
        """Read the words below `folder`, and scale coefficients to mean 0 and deviation 1 over the training words."""
        train, test = speech.load(folder)
        self.classes = len(train.names)
        mean = train.coefficients.mean((0, 3), keepdim=True)
        deviation = train.coefficients.std((0, 3), keepdim=True).clamp(min=1e-3)
        self._train, self._test = (
            Words((part.coefficients - mean) / deviation, part.labels, part.names) for part in (train, test)
        )

    def batches(self, *, seed: int, subset: int | None) -> Data:
        """Batches of 128 words. A subset counts words in the order of a shuffle, because files are sorted by word."""
        words = self._train
        if subset is not None:
            chosen = torch.randperm(len(words), generator=torch.Generator().manual_seed(0))[:subset]
            words = Words(words.coefficients[chosen], words.labels[chosen], words.names)
        return Shuffled(words, 128, seed)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Loss and accuracy on the words of the testing list."""
        loss = correct = torch.zeros(())
        with evaluating(model):
            for x, labels in zip(self._test.coefficients.split(500), self._test.labels.split(500), strict=True):
                logits = model(x)
                loss = loss + F.cross_entropy(logits, labels, reduction="sum")
                correct = correct + (logits.argmax(1) == labels).sum()
        return {"test_loss": float(loss) / len(self._test), "accuracy": float(correct) / len(self._test)}


class RecurrentKeywordsTask(KeywordsTask):
    """Spoken words and a GRU, whose activations stay float32."""

    name, activations = "keywords-gru", False

    def network(self, width: float, depth: float) -> tuple[nn.Module, Tensor]:
        """Two layers of 168 units at 1, 280k parameters; one layer and one unit at least."""
        model = Gru(self.classes, max(round(2 * depth), 1), max(round(168 * width), 1))
        # A frame at a time: the largest activation is that of one step.
        return model, torch.zeros(1, 1, COEFFICIENTS, 1)
