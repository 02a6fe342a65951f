"""One run: the float32 start that it shares with other runs, its tuning, and the line that records it."""

import shutil
from collections.abc import Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from adapt.learned import Learner
from recipes.common import classification, commands, ledger, training
from recipes.common.classification import Splits, evaluate, make_batches, make_model, make_sgd
from recipes.common.records import checkpoint_folder, outcome, provenance, run_name
from recipes.common.training import Run, evaluating
from recipes.mixed_precision.methods import TuningSettings, attach, kind_of, rate

LEDGER = "mixed_precision.jsonl"
BITS_PER_KILOBYTE = 8000
CALIBRATION = 4
"""Batches from which the activations' first ranges are taken."""


def finish(settings: TuningSettings, splits: Splits, out: Path, *, device: str, progress: bool) -> ledger.Line:
    """Tune to the end, from the last whole epoch of an interrupted run; append the line and return it.

    Writes `mixed_precision.jsonl` and, of learned widths, `traces/NAME.npz` in `out`. `runs/NAME/checkpoint.pt` is
    removed at the end of the run; that of the start stays.
    """
    path = out / LEDGER
    identity = settings.identity(settings.steps_per_epoch(len(splits[0])))
    weights = start(settings, splits, path, device=device, progress=progress)
    run = tune(settings, splits, weights, checkpoint_folder(path, identity), device=device, progress=progress)
    line = {
        **identity,
        **outcome(run, "accuracy"),
        **sizes(run),
        "phases": run.controller.log if isinstance(run.controller, Learner) else [],
        "widths": None,
        "provenance": provenance(run, command(settings, device)),
    }
    if kind_of(settings.method)[0] == "learned":
        assert isinstance(run.controller, Learner)
        line["widths"] = f"traces/{run_name(identity)}.npz"
        (out / "traces").mkdir(exist_ok=True)
        run.controller.widths.save(out / line["widths"])
    ledger.append(path, line)
    shutil.rmtree(checkpoint_folder(path, identity))
    return line


def start(settings: TuningSettings, splits: Splits, path: Path, *, device: str, progress: bool) -> Mapping[str, Tensor]:
    """The float32 network that a run begins with: its parameters and buffers, trained if no checkpoint has them yet.

    Appends a line for the start if it has none.
    """
    identity = settings.start.identity(1)
    folder = checkpoint_folder(path, identity)
    run = classification.train(settings.start, splits, folder, device=device, progress=progress)
    if not ledger.is_finished(ledger.read(path), identity):
        origin = provenance(run, command(settings, device))
        ledger.append(path, {**identity, **outcome(run, "accuracy"), "provenance": origin})
    return run.model.state_dict()


def tune(
    settings: TuningSettings,
    splits: Splits,
    weights: Mapping[str, Tensor],
    folder: Path | None,
    *,
    device: str = "cpu",
    progress: bool = True,
) -> Run:
    """Train from the start's weights, or from the checkpoint in `folder`, until `settings.epochs` more are done.

    Raises:
        ValueError: there are fewer pictures than the subset or a batch needs, the folder holds another run, or the loss
            became NaN.
    """
    batches, test_batches = make_batches(settings, splits, device)
    model, example = make_model(settings, batches.pictures)
    model.load_state_dict(weights)
    optimizer = make_sgd(settings, model)
    batches.set_epoch(settings.start_epochs)
    calibration = [x for x, _ in islice(batches, CALIBRATION)]
    controller = attach(settings.policy(len(batches)), optimizer, model, calibration)
    schedule = LambdaLR(optimizer, partial(rate, settings.epochs * len(batches)))
    run = Run(settings, model, optimizer, controller, schedule, example)
    return training.train(
        run, batches, partial(evaluate, batches=test_batches), folder,
        first_epoch=settings.start_epochs, progress=progress,
    )  # fmt: skip


def sizes(run: Run) -> dict[str, Any]:
    """What weights, biases and the inputs of layers take, in kB of 8000 bits for one sample, and layer by layer.

    Batch normalisation, and the steps of the formats, are left out for every method alike.
    """
    inputs = input_sizes(run.model, run.example)
    formats = {} if run.controller is None else run.controller.formats
    layers: dict[str, dict[str, float]] = {}
    for name, parameter in run.model.named_parameters():
        module, _, kind = name.rpartition(".")
        if f"{module}.weight" in inputs:
            layers[name] = {"weights": parameter.numel(), "weight_bits": _bits(formats.get(name))}
            if kind == "weight":
                layers[name] |= {"inputs": inputs[name], "input_bits": _bits(formats.get(f"{module}.input"))}
    weights = sum(layer["weights"] * layer["weight_bits"] for layer in layers.values()) / BITS_PER_KILOBYTE
    activations = sum(layers[name]["inputs"] * layers[name]["input_bits"] for name in inputs) / BITS_PER_KILOBYTE
    return {"weight_kilobytes": weights, "activation_kilobytes": activations, "layers": layers}


def input_sizes(model: nn.Module, example: Tensor) -> dict[str, int]:
    """Elements of the input of each convolution and dense layer for one sample, by the name of its weight."""
    found: dict[str, int] = {}

    def measure(name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        found[name] = args[0].numel()

    handles = [
        module.register_forward_pre_hook(partial(measure, f"{path}.weight"))
        for path, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    with evaluating(model):
        model(example)
    for handle in handles:
        handle.remove()
    return found


def command(settings: TuningSettings, device: str) -> str:
    """The command that repeats this run, wherever its data are."""
    kind, bits = kind_of(settings.method)
    return commands.command(
        "mixed_precision", "--models", settings.model, "--methods", kind, *(("--bits", bits) if bits < 32 else ()),
        "--seeds", settings.seed, "--start-epochs", settings.start_epochs, "--epochs", settings.epochs,
        "--batch-size", settings.batch_size, "--subset", settings.subset or 0, device=device,
    )  # fmt: skip


def _bits(form: Any) -> float:
    """The average word length of a format; 32 for float32, which has none."""
    return 32.0 if form is None else float(np.mean(form.word_length))
