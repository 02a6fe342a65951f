"""One run: tune the start for some epochs under a method, and measure what came of it."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

import adapt
from adapt import Controller, files
from recipes.common.batches import Batches
from recipes.common.classification import Splits, evaluate
from recipes.same_bits import methods, sizes
from recipes.same_bits.start import Start


@dataclass(frozen=True)
class Settings:
    """All that decides how a run goes, beside its start.

    Args:
        method: a name in `recipes.same_bits.methods.METHODS`.
        bits: the budget in bits per weight, where the method takes one.
        options: further keyword arguments of the method's policy.
        seed: of the order, the crops and the flips of the pictures.
        epochs, batch_size: as usual.
        lr: the first learning rate; it falls to 0 as a cosine over all steps.
        momentum: of SGD.
        execution: "bfloat16" to run the products of layers with short words in it, or None.
    """

    method: str
    bits: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    epochs: int = 1
    batch_size: int = 128
    lr: float = 0.02
    momentum: float = 0.9
    execution: str | None = "bfloat16"


def tune(settings: Settings, start: Start, splits: Splits, checkpoint: Path | None = None) -> dict[str, Any]:
    """Train the start's network as the settings say and return the figures of the run's result line.

    Args:
        start: where to begin; its network is changed.
        splits: training and test pictures.
        checkpoint: where the run is saved after each epoch and found when it is started again; None: nowhere.
    """
    torch.manual_seed(settings.seed)
    _, model, *scaling = start
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    batches = Batches(splits[0], settings.batch_size, *scaling, shuffle=True, padding=4, flip=True, seed=settings.seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=settings.lr, momentum=settings.momentum)
    policy = methods.policy(settings.method, settings.bits, settings.options)
    controller = None
    if policy is not None:
        controller = adapt.attach(
            optimizer, model, policy, rounding="nearest", seed=settings.seed, execution=settings.execution
        )
    schedule = CosineAnnealingLR(optimizer, settings.epochs * len(batches))
    losses: list[list[float]] = []
    if checkpoint is not None and checkpoint.exists():
        state = files.load(checkpoint)
        if state["settings"] != dataclasses.asdict(settings):
            raise ValueError(f"{checkpoint} belongs to another run, {state['settings']}: delete it")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        losses = state["losses"]
    for epoch in range(len(losses), settings.epochs):
        batches.set_epoch(epoch)
        losses.append(_train(model, optimizer, schedule, controller, batches, settings))
        if checkpoint is not None and epoch + 1 < settings.epochs:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            state |= {"schedule": schedule.state_dict(), "losses": losses, "settings": dataclasses.asdict(settings)}
            files.save(state, checkpoint)
    figures = measured(controller) if controller is not None else {"bits": 32.0}
    if controller is not None:
        controller.detach()  # leaves the rounded weights, which are tested in float32
    scores = evaluate(model, Batches(splits[1], 500, *scaling))
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return {
        **scores,
        "last_loss": float(np.mean(losses[-1][-50:])),
        **figures,
    }


def _train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: CosineAnnealingLR,
    controller: Controller | None,
    batches: Batches,
    settings: Settings,
) -> list[float]:
    """Make one pass over the batches and return the loss of every step."""
    model.train()
    losses = []
    # Float32 has no controller that runs products in bfloat16, so autocast rounds the same operands.
    autocast = controller is None and settings.execution == "bfloat16"
    for x, y in batches:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = model(x)
        loss = F.cross_entropy(logits.float(), y)
        loss.backward()
        if controller is not None:
            controller.observe(loss)
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
    return [float(loss) for loss in losses]


def measured(controller: Controller) -> dict[str, Any]:
    """Return bits and bytes of the quantised weights, and how their formats got there.

    Returns:
        bits: mean word length at the end; bits_trained: mean over all steps.
        dense_bytes, entropy_bytes, entropy_bits: see `recipes.same_bits.sizes`; the last is per weight.
        changes: how many layers changed their format, in each tenth of the run.
        formats: [word length, fraction length] of each layer at the end.
    """
    precisions = {name: form for name, form in controller.precisions.items() if form is not None}
    masters = controller.masters
    words = {name: form.word_length for name, form in precisions.items()}
    numel = {name: masters[name].numel() for name in precisions}
    trace = controller.trace
    formats = np.stack([trace.word_length, trace.fraction_length], axis=-1)
    changed = (np.diff(formats, axis=0) != 0).any(-1).sum(1)
    weights = sum(numel.values())
    by_step = (trace.word_length * trace.numel).sum(1) / trace.numel.sum()
    entropy = sizes.entropy_bytes({n: sizes.integer_words(masters[n], form) for n, form in precisions.items()})
    return {
        "bits": sizes.mean_bits(words, numel),
        "bits_trained": float(by_step.mean()),
        "dense_bytes": sizes.dense_bytes(words, numel),
        "entropy_bytes": round(entropy),
        "entropy_bits": 8 * entropy / weights,
        "changes": [int(part.sum()) for part in np.array_split(changed, 10)],
        "formats": [[form.word_length, form.fraction_length] for form in precisions.values()],
    }
