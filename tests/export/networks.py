"""Small networks, trained for a few steps, and what attached them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

import adapt
from adapt import learned


class Residual(nn.Module):
    """Convolutions, batch norms, a shortcut, pooling and a linear layer, as in a small ResNet."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.norm2 = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(y + self.norm2(self.conv2(y)))
        return self.head(F.adaptive_avg_pool2d(F.max_pool2d(y, 2), 1).flatten(1))


class Transposed(nn.Module):
    """Transposed convolutions, with groups, one of them depthwise."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 6, 2, stride=2, groups=3)
        self.down = nn.Conv2d(6, 4, 3, stride=2)
        self.depthwise = nn.ConvTranspose2d(4, 4, 2, groups=4)
        self.head = nn.LazyLinear(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.depthwise(F.relu(self.down(self.up(x)))).flatten(1))


class Separable(nn.Module):
    """Convolutions of sequences, by channel and between channels."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(3, 3, 3, padding=1, groups=3)
        self.norm = nn.BatchNorm1d(3)
        self.pointwise = nn.Conv1d(3, 6, 1)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.pointwise(F.relu(self.norm(self.depthwise(x)))))
        return self.head(F.max_pool1d(y, 4).flatten(1))


class Tied(nn.Module):
    """An embedding whose weight is the last layer's too, and attention between them."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 5, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layer(self.embedding(tokens)).mean(1))


class Conv1D(nn.Module):
    """A linear layer with the weight [in, out], as transformers has it under this name."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) / inputs**0.5)
        self.bias = nn.Parameter(torch.randn(outputs) / 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)


class TransposedWeights(nn.Module):
    """Linear layers whose weights are [in, out]."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = Conv1D(16, 192)
        self.head = Conv1D(5, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.hidden(x.flatten(1))))


class Recurrent(nn.Module):
    """A recurrent layer and attention, of which only the weights are quantised."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 8)
        self.recurrent = nn.LSTM(8, 8, batch_first=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        y, _ = self.recurrent(self.embedding(tokens))
        return self.head(self.attention(y, y, y, need_weights=False)[0].mean(1))


class Computed(nn.Module):
    """Layers whose weights are computed from others: by weight norm, pruning and spectral norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
        self.pruned = prune.l1_unstructured(nn.Linear(4 * 36, 8), "weight", 0.5)
        self.head = parametrizations.spectral_norm(nn.Linear(8, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.pruned(F.relu(self.conv(x)).flatten(1))))


@dataclass
class Run:
    """A trained network and what keeps it.

    Attributes:
        inputs: a batch of its inputs.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    controller: Any
    inputs: Tensor

    def train(self, steps: int = 4) -> "Run":
        self.model.train()
        for _ in range(steps):
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.model(self.inputs), torch.arange(len(self.inputs)) % 5)
            loss.backward()
            self.controller.observe(loss)
            self.optimizer.step()
        return self

    def evaluate(self) -> Tensor:
        self.model.eval()
        with torch.no_grad():
            return self.model(self.inputs)


def inputs_of(kind: type[nn.Module]) -> Tensor:
    """A batch of 10."""
    generator = torch.Generator().manual_seed(1)
    if kind in (Tied, Recurrent):
        return torch.randint(0, 5, (10, 6), generator=generator)
    return torch.randn((10, 3, 16) if kind is Separable else (10, 3, 8, 8), generator=generator)


def model_of(kind: type[nn.Module]) -> nn.Module:
    """The network with its first weights."""
    torch.manual_seed(0)
    model = kind()
    with torch.no_grad():
        model.eval()(inputs_of(kind))
    return model.train()


def adaptive(kind: type[nn.Module], policy: Any = None, **options: Any) -> Run:
    """A network at adaptive precision, after a few steps."""
    model = model_of(kind)
    policy = adapt.Fixed(adapt.Precision(6, 6)) if policy is None else policy
    optimizer = adapt.ASGD(model, lr=0.05, momentum=0.9, policy=policy, **options)
    return Run(model, optimizer, optimizer.controller, inputs_of(kind)).train()


def with_lsq(kind: type[nn.Module], **options: Any) -> Run:
    """A network at given widths with learned steps, after a few steps."""
    model, inputs = model_of(kind), inputs_of(kind)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    options = {"weight_bits": 3, "activation_bits": 4, **options}
    return Run(model, optimizer, learned.attach_lsq(optimizer, model, [inputs], **options), inputs).train()


def with_aqt(kind: type[nn.Module], **options: Any) -> Run:
    """A network whose steps follow the largest magnitudes, after a few steps."""
    model, inputs = model_of(kind), inputs_of(kind)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    return Run(model, optimizer, learned.attach_aqt(optimizer, model, steps=6, **options), inputs).train(6)


def with_widths(kind: type[nn.Module], bits: float = 3.5, **options: Any) -> Run:
    """A network whose widths are learned channel by channel, after all its phases."""
    model, inputs = model_of(kind), inputs_of(kind)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    controller = learned.attach(
        optimizer,
        model,
        [inputs],
        weight_budget=learned.Budget(bits=bits),
        activation_budget=learned.Budget(bits=5),
        phases=learned.Phases(2, 4, 2),
        update_every=2,
        width_rate=0.5,
        **options,
    )
    return Run(model, optimizer, controller, inputs).train(8)
