"""The training loop that all recipes share: resumable after every epoch, on any device."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from tqdm import tqdm

import adapt
from recipes.common.settings import Settings


class Data(Protocol):
    """Batches (inputs, classes) that are chosen anew in each epoch."""

    def __len__(self) -> int:
        """Batches in an epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration yields."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...


Evaluate = Callable[[nn.Module], dict[str, float]]
"""Takes a network and returns its scores by name."""


@dataclass
class Run:
    """A training run and everything that its checkpoint holds.

    Attributes:
        controller: what the optimizer has attached; None for float32.
        schedule: of the learning rate, stepped with every optimizer step, `ReduceLROnPlateau` with every epoch.
        example: an input of one sample.
        history: an entry for every finished epoch.
    """

    settings: Settings
    model: nn.Module
    optimizer: Optimizer
    controller: adapt.Controller | None
    schedule: LRScheduler | ReduceLROnPlateau
    example: Tensor
    history: list[dict[str, float]] = field(default_factory=list)

    @property
    def device(self) -> torch.device:
        """Where the run takes place."""
        return next(self.model.parameters()).device

    @property
    def trace(self) -> adapt.Trace | None:
        """The controller's trace; None for float32."""
        return None if self.controller is None else self.controller.trace

    def save(self, path: Path) -> None:
        """Write the checkpoint, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        adapt.save(
            {
                "settings": self.settings.recorded(),
                "history": self.history,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
                "random": torch.get_rng_state(),
                "random_cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            },
            path,
        )

    def load(self, path: Path) -> None:
        """Continue from a checkpoint.

        Raises:
            ValueError: the checkpoint is damaged or belongs to a run with other settings.
        """
        state = adapt.load(path)
        now, then = self.settings.recorded(), state["settings"]
        if changed := [
            f"{name} (then {then.get(name)!r}, now {now[name]!r})" for name in now if then.get(name) != now[name]
        ]:
            raise ValueError(f"{path} belongs to a run with another {', '.join(changed)}: choose another folder")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["random"])
        if state["random_cuda"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["random_cuda"])
        self.history = state["history"]


def train(
    run: Run, batches: Data, evaluate: Evaluate, folder: Path | None, *, first_epoch: int = 0, progress: bool = True
) -> Run:
    """Train until `run.settings.epochs` are done, and return the run.

    Args:
        folder: where `checkpoint.pt` is written after every epoch, and where an interrupted run finds it and continues;
            None: no checkpoint.
        first_epoch: how many epochs of the same batches the network has already seen in another run.
        progress: whether a bar shows steps, the time left, loss and scores.

    Raises:
        ValueError: the folder holds another run, or the loss became NaN.
    """
    settings, optimizer = run.settings, run.optimizer
    checkpoint = None if folder is None else folder / "checkpoint.pt"
    if checkpoint is not None and checkpoint.exists():
        run.load(checkpoint)
    with tqdm(
        desc=settings.title, total=settings.epochs * len(batches), initial=len(run.history) * len(batches),
        unit="step", disable=not progress,
    ) as bar:  # fmt: skip
        for epoch in range(len(run.history), settings.epochs):
            batches.set_epoch(first_epoch + epoch)
            start, processor_start = time.perf_counter(), time.process_time()
            loss = train_epoch(run, batches, bar)
            seconds, processor_seconds = time.perf_counter() - start, time.process_time() - processor_start
            scores = evaluate(run.model)
            entry = {"loss": loss, **scores, "seconds": seconds, "processor_seconds": processor_seconds}
            entry["lr"] = optimizer.param_groups[0]["lr"]
            if run.trace is not None:
                entry["mean_word_length"] = float(run.trace.mean_word_length()[-1])
            run.history.append(entry)
            if isinstance(run.schedule, ReduceLROnPlateau):
                run.schedule.step(loss)
            if checkpoint is not None:
                run.save(checkpoint)
            bar.set_postfix({name: f"{value:.3f}" for name, value in {"loss": loss, **scores}.items()})
    return run


def train_epoch(run: Run, batches: Data, bar: tqdm) -> float:
    """Train on every batch once and return the mean loss.

    Raises:
        ValueError: the loss became NaN.
    """
    run.model.train()
    total = torch.zeros((), device=run.device)
    for x, classes in batches:
        run.optimizer.zero_grad()
        loss = F.cross_entropy(run.model(x).flatten(0, -2), classes.flatten())
        loss.backward()
        if run.controller is not None:
            run.controller.observe(loss)
        run.optimizer.step()
        if not isinstance(run.schedule, ReduceLROnPlateau):
            run.schedule.step()
        total += loss.detach()
        bar.update()
    mean = float(total) / len(batches)
    if math.isnan(mean):
        raise ValueError(f"the training loss is not a number any more: lr = {run.settings.lr!r} is too high")
    return mean


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, where a controller shows the weights rounded to nearest."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def decaying(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups in which weights of at least two dimensions decay and all other parameters do not."""
    weights = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": weights, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
