"""The networks that are timed, with synthetic batches."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

import adapt
from recipes.common.models import MODELS

BATCHES = 16
PAPER = adapt.AdaPT()


class Trainable(Protocol):
    """Something to time."""

    def build(self, device: torch.device) -> nn.Module:
        """Return the initialised network, always with the same weights."""

    def batches(self, size: int, device: torch.device) -> list[tuple[Tensor, Tensor]]:
        """Return inputs and their classes."""


@dataclass(frozen=True)
class Network:
    """A network and its input.

    Attributes:
        name: of the model in `recipes.common.models`, and in the table.
        shape: of one picture, (channels, height, width).
    """

    name: str
    shape: tuple[int, int, int] = (3, 32, 32)

    def build(self, device: torch.device) -> nn.Module:
        """Return the initialised network, always with the same weights, in channels-last memory if it convolves."""
        torch.manual_seed(0)
        model = MODELS[self.name](10, self.shape).to(device)
        return model.to(memory_format=self._memory_format(model))  # type: ignore[call-overload, no-any-return]

    def batches(self, size: int, device: torch.device) -> list[tuple[Tensor, Tensor]]:
        """Return noisy pictures of ten patterns, one for each class, and their classes."""
        generator = torch.Generator().manual_seed(0)
        patterns = torch.randn(10, *self.shape, generator=generator)
        batches = []
        for _ in range(BATCHES):
            classes = torch.randint(10, (size,), generator=generator)
            pictures = patterns[classes] + 2 * torch.randn(size, *self.shape, generator=generator)
            memory_format = self._memory_format(MODELS[self.name](10, self.shape))
            batches.append((pictures.to(device).contiguous(memory_format=memory_format), classes.to(device)))
        return batches

    @staticmethod
    def _memory_format(model: nn.Module) -> torch.memory_format:
        convolves = any(isinstance(module, nn.Conv2d) for module in model.modules())
        return torch.channels_last if convolves else torch.contiguous_format


RESNET, ALEXNET, MLP = Network("resnet20"), Network("alexnet"), Network("mlp", (1, 28, 28))


def sgd(model: nn.Module) -> SGD:
    """The fastest plain baseline: SGD with momentum in one fused pass."""
    return SGD(model.parameters(), lr=1e-3, momentum=0.9, fused=True)


class Training:
    """A network in training; a call is one optimizer step.

    Args:
        model: the network.
        optimizer: its optimizer.
        batches: taken in turns.
        controller: the optimizer's controller, which observes the loss.
        autocast: run the forward pass under bfloat16 autocast.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        batches: list[tuple[Tensor, Tensor]],
        *,
        controller: adapt.Controller | None = None,
        autocast: bool = False,
    ) -> None:
        self.model, self.optimizer, self.controller = model, optimizer, controller
        self._batches, self._autocast, self._steps = batches, autocast, count()

    def __call__(self) -> None:
        """One optimizer step."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(*self.next_batch())
        loss.backward()
        self.update(loss)

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """Inputs and classes, taken in turns."""
        return self._batches[next(self._steps) % len(self._batches)]

    def loss(self, x: Tensor, classes: Tensor) -> Tensor:
        """The forward pass."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self._autocast):
            return F.cross_entropy(self.model(x).flatten(0, -2), classes.flatten())

    def update(self, loss: Tensor) -> None:
        """What follows the backward pass."""
        if self.controller is not None:
            self.controller.observe(loss)
        self.optimizer.step()


def plain(network: Trainable, batches: list[tuple[Tensor, Tensor]], *, autocast: bool = False) -> Training:
    """Float32 training with fused SGD, channels-last; or bfloat16 autocast."""
    model = network.build(batches[0][0].device)
    return Training(model, sgd(model), batches, autocast=autocast)


def adaptive(
    network: Trainable,
    batches: list[tuple[Tensor, Tensor]],
    *,
    policy: Any = PAPER,
    autocast: bool = False,
    **options: object,
) -> Training:
    """The same at adaptive precision with L1 and L2 penalties; by default `AdaPT()`, which normalises gradients."""
    model = network.build(batches[0][0].device)
    optimizer = sgd(model)
    attach: Callable[..., adapt.Controller] = adapt.attach
    controller = attach(optimizer, model, policy, l1=1e-5, l2=1e-4, **options)
    return Training(model, optimizer, batches, controller=controller, autocast=autocast)
