"""Train the character GPT by AdamW at any of the methods' precisions, resumable after every epoch."""

import dataclasses
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm

import adapt
from recipes.char_gpt.model import CharGPT
from recipes.char_gpt.text import Text, excerpts, windows
from recipes.common.methods import method, signature
from recipes.common.training import Run


@dataclass(frozen=True)
class Settings:
    """All that decides how a run goes; two runs with equal settings on one device give the same weights.

    Args:
        text: `Text.digest`.
        method: a name in `recipes.common.methods.METHODS`, which says policy and rounding.
        epochs, steps_per_epoch: a text has no epochs; here one is so many optimizer steps.
        batch_size: excerpts in a batch.
        context: characters in an excerpt, and the longest text that the network looks at.
        layers, width, heads: of the network.
        lr: peak of the one-cycle schedule.
        weight_decay: AdamW's own, of weights of at least two dimensions.
        l1, l2: penalty coefficients α and β, which the controller adds to the gradients.
        buffer_bits: AdaPT's.

    Raises:
        ValueError: a name or number that cannot be.
    """

    text: str
    method: str
    epochs: int = 20
    steps_per_epoch: int = 100
    batch_size: int = 16
    context: int = 128
    layers: int = 4
    width: int = 128
    heads: int = 4
    lr: float = 3e-3
    weight_decay: float = 0.1
    l1: float = 0.0
    l2: float = 0.0
    buffer_bits: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "steps_per_epoch", "batch_size", "context", "layers", "width", "heads", "lr"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)!r}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of the {self.heads} heads, got {self.width}")
        policy(self)


def policy(settings: Settings) -> Any:
    """The policy that the method's name stands for; None for float32.

    Raises:
        ValueError: no such method.
    """
    return method(settings.method).policy(settings.buffer_bits, settings.steps_per_epoch)


def identity(settings: Settings) -> dict[str, Any]:
    """What a finished run is recognised by."""
    return {
        "settings": dataclasses.asdict(settings),
        "policy": signature(policy(settings)),
        "rounding": None if settings.method == "float32" else method(settings.method).rounding,
    }


def train(
    settings: Settings, text: Text, folder: Path | None, *, device: torch.device | str = "cpu", progress: bool = True
) -> Run:
    """Train, or go on training, until `settings.epochs` are done.

    Args:
        folder: where `checkpoint.pt` is written after every epoch, and found when the run is started again; None: no
            checkpoint.
        progress: whether a bar shows steps, loss and bits per character.

    Raises:
        ValueError: the text is too short; the folder holds another run; the loss stopped being a number.
    """
    text = text.to(device)
    torch.manual_seed(settings.seed)
    model: nn.Module = CharGPT(
        len(text.alphabet), context=settings.context, layers=settings.layers, width=settings.width, heads=settings.heads
    ).to(device)
    weights = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.99), fused=True)
    controller = None
    if (chosen := policy(settings)) is not None:
        controller = adapt.attach(
            optimizer, model, chosen, l1=settings.l1, l2=settings.l2, seed=settings.seed,
            rounding=method(settings.method).rounding,
        )  # fmt: skip
    steps = settings.epochs * settings.steps_per_epoch
    schedule = OneCycleLR(optimizer, settings.lr, total_steps=steps, pct_start=0.1, cycle_momentum=False)
    run = Run(settings, model, optimizer, controller, schedule, (settings.context,))
    checkpoint = None if folder is None else folder / "checkpoint.pt"
    if checkpoint is not None and checkpoint.exists():
        run.load(checkpoint)

    with tqdm(
        desc=f"char-gpt {settings.method}", total=steps, initial=len(run.history) * settings.steps_per_epoch,
        unit="step", disable=not progress,
    ) as bar:  # fmt: skip
        for epoch in range(len(run.history), settings.epochs):
            start = time.perf_counter()
            loss = train_epoch(run, text, epoch, bar)
            seconds = time.perf_counter() - start
            bits = bits_per_character(model, text, settings.context)
            entry = {"loss": loss, "bits_per_character": bits, "seconds": seconds}
            entry["lr"] = optimizer.param_groups[0]["lr"]
            if controller is not None:
                entry["mean_word_length"] = float(controller.trace.word_length[-1].mean())
            run.history.append(entry)
            if checkpoint is not None:
                run.save(checkpoint)
            bar.set_postfix({"loss": f"{loss:.3f}", "bits per character": f"{bits:.3f}"})
    return run


def train_epoch(run: Run, text: Text, epoch: int, bar: tqdm) -> float:
    """One epoch's steps; the mean training loss in nats.

    Raises:
        ValueError: the loss stopped being a number.
    """
    settings = run.settings
    run.model.train()
    total = torch.zeros((), device=text.training.device)
    for batch in excerpts(
        text.training, batch_size=settings.batch_size, context=settings.context, steps=settings.steps_per_epoch,
        seed=settings.seed, epoch=epoch,
    ):  # fmt: skip
        run.optimizer.zero_grad()
        loss = F.cross_entropy(run.model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        if run.controller is not None:
            run.controller.observe(loss)
        run.optimizer.step()
        run.schedule.step()
        total += loss.detach()
        bar.update()
    mean = float(total) / settings.steps_per_epoch
    if math.isnan(mean):
        raise ValueError(f"the training loss is not a number any more: lr = {settings.lr!r} is too high")
    return mean


@torch.no_grad()
def bits_per_character(model: nn.Module, text: Text, context: int) -> float:
    """Mean −log₂ of the probability given to each held-out character, in evaluation mode, weights rounded to nearest.

    The text is cut into windows, so that the first characters of each are guessed from few.
    """
    was_training = model.training
    model.eval()
    total = torch.zeros((), dtype=torch.float64, device=text.held_out.device)
    for x, y in windows(text.held_out, context):
        total += F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum")
    model.train(was_training)
    return float(total) / (len(text.held_out) - 1) / math.log(2)
