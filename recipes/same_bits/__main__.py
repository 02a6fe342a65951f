"""Adaptive precision against the same bits for every layer, tuned from a converged network.

    python -m recipes.same_bits float32 block:4 compact:4 --seeds 0 1 2 --start data/resnet20-cifar10.th
    python -m recipes.same_bits float32 block:4 compact:4 --data-set fashion-mnist --model lenet5 --start-epochs 10
    python -m recipes.same_bits.report recipes/results/same_bits.jsonl

Weights alone are quantised, to nearest; by aqt, and with --option activations=4, activations too. Every finished run is
appended as one line to --out. The same command given again skips what is finished and goes on with what was
interrupted. Without --start, a published ResNet-20 on CIFAR-10, the recipe first trains a start of its own.
"""

import argparse
import copy
import dataclasses
import json
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import adapt
from recipes.common import commands, data, ledger
from recipes.common.models import MODELS
from recipes.common.settings import check_choice
from recipes.same_bits.methods import METHODS
from recipes.same_bits.settings import Settings
from recipes.same_bits.start import own, published
from recipes.same_bits.tuning import tune


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = commands.parser("same_bits", __doc__)
    parser.add_argument(
        "runs", nargs="+", help=f"METHOD or METHOD:BITS, such as block:4; methods are {', '.join(METHODS)}"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--epochs", type=int, default=Settings.epochs)
    parser.add_argument("--option", action="append", default=[], help="NAME=JSON, a hyperparameter of the policy")
    parser.add_argument("--label", default="", help="sets these runs apart from others with the same settings")
    parser.add_argument("--execution", choices=["bfloat16"], help="run products of short words in this type")
    parser.add_argument("--start", type=Path, help="a published ResNet-20 checkpoint for CIFAR-10")
    parser.add_argument("--data-set", choices=list(data.DATA_SETS), default="cifar10", help="without --start")
    parser.add_argument("--model", choices=list(MODELS), default="resnet20", help="without --start")
    parser.add_argument("--start-epochs", type=int, default=60, help="without --start: epochs of the recipe's own")
    commands.add_data(parser)
    parser.add_argument("--out", type=Path, default=Path("recipes/results/same_bits.jsonl"))
    return parser.parse_args(arguments)


def plan(options: argparse.Namespace) -> list[Settings]:
    """Return the settings of all runs, seed by seed.

    Raises:
        ValueError: there is no such method, a budget is not a number, or an option is not NAME=JSON.
    """
    chosen = {name: json.loads(value) for name, _, value in (option.partition("=") for option in options.option)}
    runs = [run.partition(":") for run in options.runs]
    for method, _, _ in runs:
        check_choice("method", method, METHODS)
    return [
        Settings(
            method,
            json.loads(bits) if bits else None,
            chosen,
            seed=seed,
            epochs=options.epochs,
            execution=options.execution,
        )
        for seed in options.seeds
        for method, _, bits in runs
    ]


def run(options: argparse.Namespace) -> None:
    """Make the runs that have no result line yet."""
    what = options.data_set, options.model
    if options.start and what != ("cifar10", "resnet20"):
        raise ValueError(f"--start is a ResNet-20 for CIFAR-10: leave it out to train {what[1]} on {what[0]} first")
    splits = data.load(options.data_set, options.data, download=not options.no_download)
    folder = options.out.parent / "same_bits_start"
    start = published(options.start) if options.start else own(splits, *what, options.start_epochs, folder)

    for settings in plan(options):
        identity = {"settings": dataclasses.asdict(settings), "label": options.label, "start": start.name}
        if ledger.is_finished(ledger.read(options.out), identity):
            continue
        checkpoint = options.out.with_suffix(f".{ledger.digest(identity)}.pt")
        figures = tune(settings, start._replace(model=copy.deepcopy(start.model)), splits, checkpoint)
        ledger.append(options.out, {**identity, **figures, **provenance(options.command)})
        print(f"{settings}: {figures['accuracy']:.4f} at {figures['bits']:.2f} bits", flush=True)


def provenance(command: Sequence[str]) -> dict[str, Any]:
    """Return where a result comes from: the command, the versions and the machine."""
    return {
        "command": shlex.join(["python", "-m", "recipes.same_bits", *command]),
        "adapt": adapt.__version__,
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the runs of a command line."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments)
    options.command = arguments
    commands.run("same_bits", options, run)


if __name__ == "__main__":
    main()
