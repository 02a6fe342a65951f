"""The tasks of the study. One of your own is a class with the members of `Task`, named as --task module:class."""

import importlib
import math
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes.common import data, text
from recipes.common.batches import Batches
from recipes.common.bfloat16 import Bfloat16
from recipes.common.efficientnet import light_efficientnet
from recipes.common.gpt import CharGPT
from recipes.common.models import resnet
from recipes.common.training import Data, evaluating
from recipes.tradeoff.keywords import KeywordsTask, RecurrentKeywordsTask


class Task(Protocol):
    """Data, and a network for them that can be scaled.

    Attributes:
        name: what lines, texts and file names call it.
        score: the entry of `evaluate` that counts, and `unit` what it is in words.
        larger_is_better: whether it does.
        activations: whether activations are quantised if the command line does not say.
        lr, weight_decay: of AdamW.
        epochs, subset: of the reduced study; a subset of 0 is all of the data.
    """

    name: str
    score: str
    unit: str
    larger_is_better: bool
    activations: bool
    lr: float
    weight_decay: float
    epochs: int
    subset: int

    def network(self, width: float, depth: float) -> tuple[nn.Module, Tensor]:
        """The network of these factors of width and depth, and an input of one sample. It needs no data.

        It must not become smaller when a factor grows.
        """

    def load(self, folder: Path, *, download: bool) -> None:
        """Read the data."""

    def batches(self, *, seed: int, subset: int | None) -> Data:
        """Batches (inputs, classes) to train on, chosen anew in every epoch."""

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Scores on data that were not trained on."""


class PicturesTask:
    """CIFAR-10 pictures and ResNet-20 (the paper's section 4.1)."""

    name, score, unit, larger_is_better, activations = "pictures", "accuracy", "accuracy", True, True
    lr, weight_decay, epochs, subset = 4e-3, 1e-2, 4, 25_000

    def network(self, width: float, depth: float) -> tuple[nn.Module, Tensor]:
        """ResNet-20 at 1; one block a stage and one filter at least. Stages that come first are the deeper ones."""
        blocks = max(round(9 * depth), 3)
        stages = (blocks + 2) // 3, (blocks + 1) // 3, blocks // 3
        return resnet(blocks=stages, multiplier=width), torch.zeros(1, 3, 32, 32)

    def load(self, folder: Path, *, download: bool) -> None:
        """Read the pictures."""
        self._train, self._test = data.load("cifar10", folder, download=download)

    def batches(self, *, seed: int, subset: int | None) -> Data:
        """Batches of 128 pictures, cropped and flipped."""
        pictures = self._train.first(subset)
        self._scaling = pictures.statistics()
        return Batches(pictures, 128, *self._scaling, shuffle=True, padding=4, flip=True, seed=seed)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Loss and accuracy on the test pictures."""
        batches = Batches(self._test, 500, *self._scaling)
        loss = correct = torch.zeros(())
        with evaluating(model):
            for x, labels in batches:
                logits = model(x)
                loss = loss + F.cross_entropy(logits, labels, reduction="sum")
                correct = correct + (logits.argmax(1) == labels).sum()
        return {"test_loss": float(loss) / len(self._test), "accuracy": float(correct) / len(self._test)}


class EfficientNetTask(PicturesTask):
    """CIFAR-10 pictures and a light EfficientNet with ReLU."""

    name = "pictures-efficientnet"

    def network(self, width: float, depth: float) -> tuple[nn.Module, Tensor]:
        """254k parameters at 1; one block a stage and one filter at least."""
        return light_efficientnet(width=width, depth=depth), torch.zeros(1, 3, 32, 32)


class TextTask:
    """The characters of a text and a decoder-only transformer (the paper's section 4.3, over characters)."""

    name, score, unit, larger_is_better, activations = "text", "bits_per_character", "bits per character", False, False
    lr, weight_decay, epochs, subset = 3e-3, 0.1, 10, 0
    context, alphabet, steps, batch_size = 64, 65, 100, 32

    def network(self, width: float, depth: float) -> tuple[nn.Module, Tensor]:
        """Four layers with 16 heads of 8 at 1: embedding dimension, heads and layers are scaled.

        The input is one character, because a text is read and written one character after another.
        """
        heads, layers = max(round(16 * width), 1), max(round(4 * depth), 1)
        model = CharGPT(self.alphabet, context=self.context, layers=layers, width=8 * heads, heads=heads)
        return model, torch.zeros(1, 1, dtype=torch.int64)

    def load(self, folder: Path, *, download: bool) -> None:
        """Read tinyshakespeare, or the text that `folder` is."""
        self._text = text.load(folder, download=download)
        self.alphabet = len(self._text.alphabet)

    def batches(self, *, seed: int, subset: int | None) -> Data:
        """Batches of 32 excerpts; an epoch has 100. A subset counts the characters from the beginning."""
        return text.Excerpts(
            self._text.training[:subset], batch_size=self.batch_size, context=self.context, steps=self.steps, seed=seed
        )

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Mean −log₂ of the probability of each held-out character."""
        total = torch.zeros((), dtype=torch.float64)
        with evaluating(model):
            for x, y in text.windows(self._text.held_out, self.context):
                total += F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum")
        return {"bits_per_character": float(total) / (len(self._text.held_out) - 1) / math.log(2)}


TASKS: dict[str, type[Any]] = {
    "pictures": PicturesTask,
    "pictures-efficientnet": EfficientNetTask,
    "text": TextTask,
    "keywords": KeywordsTask,
    "keywords-gru": RecurrentKeywordsTask,
}


def find(name: str) -> Task:
    """Return a task by its name, or by module and class.

    Raises:
        ValueError: there is none.
    """
    if name in TASKS:
        task: Task = TASKS[name]()
        return task
    module, _, kind = name.partition(":")
    try:
        made: Task = getattr(importlib.import_module(module), kind)()
    except (ImportError, AttributeError, ValueError) as error:
        known = ", ".join(TASKS)
        raise ValueError(f"task must be {known}, or module:class of your own, got {name!r}: {error}") from error
    return made


def in_bfloat16(model: nn.Module) -> nn.Module:
    """The network with its training's products in bfloat16, and evaluation in float32."""
    return Bfloat16(model.to(memory_format=torch.channels_last), always=False)
