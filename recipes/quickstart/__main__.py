"""AdaPT in a minute: a small network learns real handwritten digits in float32 and at adaptive precision.

    python -m recipes.quickstart

Precision is decided by `AdaPT.compact()`, and then by the rules of the paper. Each network is trained twice: by a plain
PyTorch loop, in which the optimizer is exchanged, and by a Lightning trainer, which gets one more callback. Both give
the same weights. Shows a progress bar and, at the end, a table; writes pictures of the word lengths over time and
TensorBoard logs under runs/quickstart, which `adapt report` compares.

Measured with the default seed: accuracy 0.992 in float32, 0.994 with compact() at 4.0 bits for the average weight, and
0.997 with the paper's rules at 14.0 bits; one of the 360 test pictures is 0.003. Modelled by the paper's performance
model, in the same order: sizes of 0.10 and 0.44, training speedups of 1.64 and 1.21, inference speedups of 8.7 and 2.3.
The six runs took a minute of processor time on a busy machine.
"""

import argparse
import contextlib
import logging
import time
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm

import adapt
from adapt.lightning import AdaptivePrecision
from adapt.report import save_pictures
from recipes.common.batches import Batches
from recipes.common.classification import evaluate
from recipes.common.costs import costs, table
from recipes.common.data import digits
from recipes.common.models import small_cnn

BATCH_SIZE = 32
METHODS: dict[str, dict[str, Any]] = {
    "compact": {"policy": adapt.AdaPT.compact(), "rounding": "nearest"},
    "paper": {"policy": adapt.AdaPT()},
}
"""What decides on the precision: the rules that waste no bits, and those of the paper as printed."""

LEARNING_RATE = {"float32": 0.05, "compact": 0.05, "paper": 0.01}
"""Peaks. The paper's gradients have norm 1 in every layer, so its rate is the length of a step, whatever the loss."""


class Classifier(lightning.LightningModule):
    """An ordinary classifier, which knows nothing of precision."""

    def __init__(self, method: str, steps: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.model = small_cnn()
        self.options = {"lr": LEARNING_RATE[method], "momentum": 0.9, "nesterov": True}
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        x, labels = batch
        return F.cross_entropy(self(x), labels)

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        x, labels = batch
        self.log("accuracy", (self(x).argmax(1) == labels).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), **self.options)
        schedule = OneCycleLR(optimizer, self.options["lr"], total_steps=self.steps, cycle_momentum=False)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def plain(method: str, model: Classifier, training: Batches, test: Batches, epochs: int, folder: Path) -> Any:
    """Train in a plain PyTorch loop and return the trace, None for float32."""
    if method in METHODS:
        # Instead of torch.optim.SGD(model.parameters(), …).
        optimizer: Any = adapt.ASGD(model, **model.options, **METHODS[method])
    else:
        optimizer = torch.optim.SGD(model.parameters(), **model.options)
    schedule = OneCycleLR(optimizer, model.options["lr"], total_steps=model.steps, cycle_momentum=False)
    recorder: Any = adapt.Recorder(optimizer.controller, folder) if method in METHODS else contextlib.nullcontext()
    with recorder, tqdm(total=model.steps, desc=f"{method}, plain", unit="step") as bar:
        for epoch in range(epochs):
            training.set_epoch(epoch)
            for x, labels in training:
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), labels)
                loss.backward()
                if method in METHODS:
                    optimizer.controller.observe(loss)
                optimizer.step()
                schedule.step()
                bar.update()
            if method in METHODS:
                recorder.log(loss=loss)
        accuracy = evaluate(model, test)["accuracy"]
        bar.set_postfix(accuracy=f"{accuracy:.3f}")
        if method in METHODS:
            recorder.log(accuracy=accuracy)
    if method not in METHODS:
        return None
    trace = optimizer.controller.trace
    optimizer.controller.detach()
    return trace


def in_lightning(method: str, model: Classifier, training: Batches, test: Batches, epochs: int, folder: Path) -> Any:
    """Train by a Lightning trainer and return the trace, None for float32. The callback writes its own logs."""
    precision = AdaptivePrecision(**METHODS[method]) if method in METHODS else None
    trainer = lightning.Trainer(
        max_epochs=epochs,
        callbacks=[] if precision is None else [precision],
        accelerator="cpu",
        logger=TensorBoardLogger(folder.parent, name=folder.name, version=""),
        log_every_n_steps=10,
        check_val_every_n_epoch=10,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(model, training, test)
    return None if precision is None else precision.trace


def main(arguments: list[str] | None = None) -> None:
    """Train six times and show the results."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.quickstart", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"), help="folder of logs and pictures")
    options = parser.parse_args(arguments)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    torch.set_num_threads(1)  # in so small a network several threads only wait for each other
    pictures, test_pictures = digits()
    statistics = pictures.statistics()
    training = Batches(pictures, BATCH_SIZE, *statistics, shuffle=True, seed=options.seed)
    test = Batches(test_pictures, len(test_pictures), *statistics)

    rows, traces = [], {}
    for method in ("float32", *METHODS):
        for way in (plain, in_lightning):
            name = f"{method}-{way.__name__.removeprefix('in_')}"
            model = Classifier(method, options.epochs * len(training), options.seed)
            start = time.perf_counter()
            trace = way(method, model, training, test, options.epochs, options.out / name)
            seconds = time.perf_counter() - start
            figures = costs(model, torch.zeros(1, *pictures.shape), trace, BATCH_SIZE)
            rows.append({"run": name, "accuracy": evaluate(model, test)["accuracy"], "seconds": seconds, **figures})
            if trace is not None:
                traces[name] = trace

    same = all(
        np.array_equal(traces[f"{method}-plain"].word_length, traces[f"{method}-lightning"].word_length)
        for method in METHODS
    )
    first = next(iter(traces))
    pictures_of_trace = save_pictures(traces[first], options.out)
    print(f"\n{table(rows)}\n")
    print(f"Word lengths in the plain loop and in Lightning: {'the same in every step' if same else 'different'}.")
    print(f"Pictures: {', '.join(map(str, pictures_of_trace))}")
    print(f"Curves: tensorboard --logdir {options.out}")
    runs = " ".join(str(options.out / f"{method}-plain") for method in METHODS)
    print(f"Side by side: adapt report {runs} --html report.html")


if __name__ == "__main__":
    main()
