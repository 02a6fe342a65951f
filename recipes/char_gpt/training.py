"""Train the character GPT by AdamW at the precision of any method."""

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

import adapt
from recipes.common import training
from recipes.common.gpt import CharGPT
from recipes.common.settings import Settings
from recipes.common.text import Excerpts, Text, windows
from recipes.common.training import Run, decaying, evaluating


@dataclass(frozen=True, kw_only=True)
class GPTSettings(Settings):
    """Settings of a character GPT that AdamW trains by a one-cycle schedule.

    Args:
        text: `Text.digest`.
        steps_per_epoch: a text has no epochs; here an epoch is this many optimizer steps.
        batch_size: excerpts in a batch.
        context: characters in an excerpt, and the longest text that the network can look back on.
        layers, width, heads: of the network.
        weight_decay: AdamW's own, of weights of at least two dimensions; l1 and l2 are added to the gradients instead.
    """

    text: str
    epochs: int = 20
    steps_per_epoch: int = 100
    batch_size: int = 16
    context: int = 128
    layers: int = 4
    width: int = 128
    heads: int = 4
    lr: float = 3e-3
    weight_decay: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of the {self.heads} heads, got {self.width}")

    @property
    def title(self) -> str:
        """Network and method."""
        return f"char-gpt {self.method}"


def train(
    settings: GPTSettings,
    text: Text,
    folder: Path | None,
    *,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> Run:
    """Train until `settings.epochs` are done, continuing from `folder`; arguments as in `recipes.common.training`.

    Raises:
        ValueError: the text is too short, the folder holds another run, or the loss became NaN.
    """
    text = text.to(device)
    batches = Excerpts(
        text.training, batch_size=settings.batch_size, context=settings.context, steps=settings.steps_per_epoch,
        seed=settings.seed,
    )  # fmt: skip
    torch.manual_seed(settings.seed)
    model: nn.Module = CharGPT(
        len(text.alphabet), context=settings.context, layers=settings.layers, width=settings.width, heads=settings.heads
    ).to(device)
    optimizer = torch.optim.AdamW(decaying(model, settings.weight_decay), lr=settings.lr, betas=(0.9, 0.99), fused=True)
    controller = None
    if (policy := settings.policy(settings.steps_per_epoch)) is not None:
        controller = adapt.attach(
            optimizer, model, policy, l1=settings.l1, l2=settings.l2, seed=settings.seed, rounding=settings.rounding
        )
    steps = settings.epochs * settings.steps_per_epoch
    schedule = OneCycleLR(optimizer, settings.lr, total_steps=steps, pct_start=0.1, cycle_momentum=False)
    example = torch.zeros(1, settings.context, dtype=torch.int64, device=device)
    run = Run(settings, model, optimizer, controller, schedule, example)
    evaluate = partial(bits_per_character, text=text, context=settings.context)
    return training.train(run, batches, evaluate, folder, progress=progress)


def bits_per_character(model: nn.Module, text: Text, context: int) -> dict[str, float]:
    """Mean −log₂ of the probability of each held-out character.

    The text is cut into windows, so the first characters of each window are predicted from few.
    """
    total = torch.zeros((), dtype=torch.float64, device=text.held_out.device)
    with evaluating(model):
        for x, y in windows(text.held_out, context):
            total += F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum")
    return {"bits_per_character": float(total) / (len(text.held_out) - 1) / math.log(2)}
