"""One run: the float32 start that it shares with others, its tuning, and the line that tells of it."""

import dataclasses
import shlex
import shutil
from collections.abc import Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from adapt.adaptive.controller import Controller
from adapt.learned import Learner
from adapt.perfmodel.footprint import BITS_PER_KILOBYTE
from recipes.common import ledger, training
from recipes.common.conclusion import checkpoint_folder, run_name
from recipes.common.data import Pictures
from recipes.common.methods import signature
from recipes.common.models import MODELS
from recipes.common.training import Run, go_on, make_batches, provenance
from recipes.mixed_precision.points import Plan, Settings, attach, course, kind_of, plan

LEDGER = "mixed_precision.jsonl"
CALIBRATION = 4
"""Batches that the activations' first ranges are taken from."""


def identity(settings: Settings, pictures: int) -> dict[str, Any]:
    """All that decides how a run goes: what a finished run is recognised by.

    Args:
        pictures: of the training split, before `settings.subset` cuts it.
    """
    steps = settings.epochs * ((settings.subset or pictures) // settings.batch_size)
    return _identity(settings, plan(settings, steps))


def finish(
    settings: Settings, splits: tuple[Pictures, Pictures], out: Path, *, device: str, progress: bool
) -> ledger.Line:
    """Tune until the end, from the last whole epoch of an earlier try; append the line and answer it.

    Writes `mixed_precision.jsonl` and, of learned widths, `traces/NAME.npz` in `out`; `runs/NAME/checkpoint.pt` is
    there while the run lasts, and that of the start for good.
    """
    path = out / LEDGER
    decided = identity(settings, len(splits[0]))
    weights = start(settings, splits, path, device=device, progress=progress)
    run = tune(settings, splits, weights, checkpoint_folder(path, decided), device=device, progress=progress)
    line = {
        **decided,
        **_results(run),
        **sizes(run.model, run.controller, run.shape),
        "phases": run.controller.log if isinstance(run.controller, Learner) else [],
        "widths": None,
        "provenance": {**provenance(), "command": command(settings, device), "device": device},
    }
    if kind_of(settings.method)[0] == "learned":
        assert isinstance(run.controller, Learner)
        line["widths"] = f"traces/{run_name(decided)}.npz"
        (out / "traces").mkdir(exist_ok=True)
        run.controller.widths.save(out / line["widths"])
    ledger.append(path, line)
    shutil.rmtree(checkpoint_folder(path, decided))
    return line


def start(
    settings: Settings, splits: tuple[Pictures, Pictures], path: Path, *, device: str, progress: bool
) -> Mapping[str, Tensor]:
    """The float32 network that a run begins with: its parameters and buffers, trained where they are not there yet.

    Appends the line of a start that has none.
    """
    decided = _identity(settings.start, None)
    run = training.train(settings.start, splits, checkpoint_folder(path, decided), device=device, progress=progress)
    if not ledger.is_finished(ledger.read(path), decided):
        told = {"provenance": {**provenance(), "command": command(settings, device), "device": device}}
        ledger.append(path, {**decided, **_results(run), **told})
    return run.model.state_dict()


def tune(
    settings: Settings,
    splits: tuple[Pictures, Pictures],
    weights: Mapping[str, Tensor],
    folder: Path | None,
    *,
    device: str = "cpu",
    progress: bool = True,
) -> Run:
    """Go on from the start's weights, or from the checkpoint in `folder`, until `settings.epochs` more are done.

    Raises:
        ValueError: there are fewer pictures than the subset or a batch asks for; the folder holds another run; the loss
            stopped being a number.
    """
    batches, test_batches = make_batches(
        splits, settings.data_set, settings.batch_size, settings.subset, settings.seed, device
    )
    steps = settings.epochs * len(batches)
    model = MODELS[settings.model](batches.pictures.classes, batches.pictures.shape)
    model = model.to(device=device, memory_format=torch.channels_last)
    model.load_state_dict(weights)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": settings.l2},
        {"params": [p for p in model.parameters() if p.ndim <= 1]},
    ]
    optimizer = torch.optim.SGD(groups, settings.lr, settings.momentum, nesterov=settings.momentum > 0, fused=True)
    batches.set_epoch(settings.start_epochs)
    calibration = [x for x, _ in islice(batches, CALIBRATION)]
    controller = attach(plan(settings, steps), optimizer, model, calibration)
    schedule = LambdaLR(optimizer, partial(course, steps))
    run = Run(settings, model, optimizer, controller, schedule, batches.pictures.shape)
    checkpoint = None if folder is None else folder / "checkpoint.pt"
    if checkpoint is not None and checkpoint.exists():
        run.load(checkpoint)
    go_on(run, batches, test_batches, checkpoint, before=settings.start_epochs, progress=progress)
    return run


def sizes(model: nn.Module, controller: Controller | None, shape: tuple[int, ...]) -> dict[str, Any]:
    """What weights, biases and the inputs of layers take, in kB of 8000 bits for one sample, and layer by layer.

    Batch normalisation, and the steps of the formats, are left out for every method alike.
    """
    inputs = input_sizes(model, shape)
    precisions = {} if controller is None else controller.precisions
    layers: dict[str, dict[str, float]] = {}
    for name, parameter in model.named_parameters():
        if name in inputs or name.removesuffix("bias") + "weight" in inputs:
            layers[name] = {"weights": parameter.numel(), "weight_bits": _bits(precisions.get(name))}
        if name in inputs:
            form = controller.activation_precisions.get(f"{name}.input") if controller is not None else None
            layers[name] |= {"inputs": inputs[name], "input_bits": _bits(form)}
    weights = sum(layer["weights"] * layer["weight_bits"] for layer in layers.values()) / BITS_PER_KILOBYTE
    activations = sum(layers[name]["inputs"] * layers[name]["input_bits"] for name in inputs) / BITS_PER_KILOBYTE
    return {"weight_kilobytes": weights, "activation_kilobytes": activations, "layers": layers}


def input_sizes(model: nn.Module, shape: tuple[int, ...]) -> dict[str, int]:
    """Elements of each convolution's and dense layer's input for one sample, by the name of its weight."""
    found: dict[str, int] = {}

    def look(name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        found[name] = args[0].numel()

    handles = [
        module.register_forward_pre_hook(partial(look, f"{path}.weight"))
        for path, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    was_training = model.training
    model.eval()
    with torch.no_grad():
        model(torch.zeros(1, *shape, device=next(model.parameters()).device))
    model.train(was_training)
    for handle in handles:
        handle.remove()
    return found


def command(settings: Settings, device: str) -> str:
    """What makes this run alone, wherever its data lie."""
    kind, bits = kind_of(settings.method)
    words = [
        "python", "-m", "recipes.mixed_precision", "--models", settings.model, "--methods", kind,
        *(("--bits", bits) if bits < 32 else ()), "--seeds", settings.seed, "--start-epochs", settings.start_epochs,
        "--epochs", settings.epochs, "--batch-size", settings.batch_size, "--subset", settings.subset or 0,
        "--device", device, "--threads", torch.get_num_threads(),
    ]  # fmt: skip
    return shlex.join(map(str, words))


def _identity(settings: Settings | training.Settings, chosen: Plan | None) -> dict[str, Any]:
    return {
        "settings": dataclasses.asdict(settings),
        "policy": signature(chosen),  # type: ignore[arg-type]
        "rounding": None if chosen is None else "nearest",
    }


def _results(run: Run) -> dict[str, Any]:
    return {
        "accuracy": run.history[-1]["accuracy"],
        "seconds": sum(epoch["seconds"] for epoch in run.history),
        "parameters": sum(parameter.numel() for parameter in run.model.parameters()),
        "history": run.history,
    }


def _bits(form: Any) -> float:
    """Average word length of a layer's format; 32 of what stays float32."""
    return 32.0 if form is None else float(np.mean(form.word_length))
