"""One run: tune the start for some epochs under a method, and measure what came of it."""

import dataclasses
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

import adapt
from adapt import files
from recipes.common.batches import Batches
from recipes.common.classification import Splits, evaluate
from recipes.same_bits import methods, sizes
from recipes.same_bits.methods import Controller
from recipes.same_bits.settings import Settings
from recipes.same_bits.start import Start

CALIBRATION = 4
"""Batches from which learned steps of activations begin."""


def tune(settings: Settings, start: Start, splits: Splits, checkpoint: Path | None = None) -> dict[str, Any]:
    """Train the start's network as the settings say and return the figures of the run's result line.

    Args:
        start: where to begin; its network is changed.
        splits: training and test pictures.
        checkpoint: where the run is saved after each epoch and found when it is started again; None: nowhere.
    """
    torch.manual_seed(settings.seed)
    model, scaling = start.model, (start.mean, start.deviation)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    batches = Batches(
        splits[0], settings.batch_size, *scaling, shuffle=True, seed=settings.seed,
        padding=4 if start.natural else 0, flip=start.natural,
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=settings.lr, momentum=settings.momentum)
    steps = settings.epochs * len(batches)
    calibration = [x for x, _ in islice(batches, CALIBRATION)] if "activations" in settings.options else []
    controller = methods.attach(settings, optimizer, model, steps, calibration)
    schedule = CosineAnnealingLR(optimizer, steps)
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
        # Leaves the rounded weights, and activations where they are rounded; products are computed in float32.
        controller.detach(keep_activations=True)
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
    # Only a policy's controller runs products in bfloat16 itself; for the others autocast rounds the same operands.
    autocast = settings.execution == "bfloat16" and not isinstance(controller, adapt.Controller)
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
        bits: mean word length at the end.
        dense_bytes, entropy_bytes, entropy_bits: see `recipes.same_bits.sizes`; the first includes `step_bytes`, and
            the last is per weight.
        formats: [word length, fraction length] of each layer at the end, where a policy chose them.
        bits_trained: mean word length over all steps, likewise.
        changes: how many layers changed their format in each tenth of the run, likewise.
    """
    formats, masters = controller.formats, controller.masters
    words = {name: formats[name].integers(master) for name, master in masters.items()}
    lengths = {name: sizes.word_lengths(formats[name], master) for name, master in masters.items()}
    entropy = sizes.entropy_bytes(words.values())
    figures = {
        "bits": sizes.mean_bits(lengths.values()),
        "dense_bytes": sizes.dense_bytes(lengths.values()) + sum(sizes.step_bytes(formats[name]) for name in masters),
        "entropy_bytes": round(entropy),
        "entropy_bits": 8 * entropy / sum(master.numel() for master in masters.values()),
    }
    if not isinstance(controller, adapt.Controller):
        return figures
    trace = controller.trace
    history = np.stack([trace.word_length, trace.fraction_length], axis=-1)
    changed = (np.diff(history, axis=0) != 0).any(-1).sum(1)
    return {
        **figures,
        "bits_trained": float((trace.word_length @ trace.numel).mean() / trace.numel.sum()),
        "changes": [int(part.sum()) for part in np.array_split(changed, 10)],
        "formats": history[-1].tolist(),
    }
