"""CIFAR-10 by the plain loop: ResNet-20, the CIFAR AlexNet or LeNet-5, in float32 or at adaptive precision.

    python -m recipes.cifar10 --model resnet20 --method adapt --epochs 30 --data data --out runs/resnet20-adapt

Reads the official binary archive under --data and downloads it where it is missing. The same command continues a run
that was interrupted. Writes checkpoint.pt, result.json and, except in float32, trace.npz and pictures of it.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from adapt.report import save_pictures
from recipes.common import commands
from recipes.common.classification import SCHEDULES, ClassifierSettings, recommended, train
from recipes.common.costs import costs, table
from recipes.common.data import load
from recipes.common.ledger import write_text
from recipes.common.methods import names
from recipes.common.records import outcome, provenance
from recipes.common.training import Run

RATES = ("lr", "l1", "l2", "buffer_bits")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = commands.parser("cifar10", __doc__)
    parser.add_argument("--model", choices=("resnet20", "alexnet", "lenet5"), default="resnet20")
    parser.add_argument("--method", default="adapt", help=f"one of {', '.join(names())}")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--schedule", choices=SCHEDULES, default="onecycle")
    parser.add_argument("--lr", type=float, help="peak (onecycle) or start (plateau) of the learning rate")
    parser.add_argument("--l1", type=float, help="coefficient α of the L1 penalty")
    parser.add_argument("--l2", type=float, help="coefficient β of the L2 penalty")
    parser.add_argument("--buffer-bits", type=int, help="default: 8 for resnet20, 4 for the others, as in the paper")
    parser.add_argument("--subset", type=int, help="train on this many pictures only")
    parser.add_argument("--seed", type=int, default=0)
    commands.add_data(parser)
    parser.add_argument("--out", type=Path, help="default: runs/MODEL-METHOD-SEED")
    return parser.parse_args(arguments)


def train_one(options: argparse.Namespace) -> None:
    """Train, write the results and print the table."""
    given = {name: getattr(options, name) for name in RATES if getattr(options, name) is not None}
    settings = ClassifierSettings(
        data_set="cifar10", model=options.model, method=options.method, epochs=options.epochs,
        batch_size=options.batch_size, schedule=options.schedule, subset=options.subset, seed=options.seed,
        **{**recommended(options.model, options.method), **given},
    )  # fmt: skip
    folder = options.out or Path("runs", f"{options.model}-{options.method}-{options.seed}")
    splits = load("cifar10", options.data, download=not options.no_download)
    run = train(settings, splits, folder, device=options.device)
    print(table([write(run, f"{options.model} {options.method}", folder)]))
    print(f"All files of the run are in {folder}")


def write(run: Run, name: str, folder: Path) -> dict[str, Any]:
    """Write `result.json` and, where there is a trace, `trace.npz` and pictures of it; return the result."""
    result = {
        "run": name,
        **outcome(run, "accuracy"),
        **costs(run.model, run.example, run.trace, run.settings.batch_size),
        "settings": run.settings.recorded(),
        **provenance(run),
    }
    folder.mkdir(parents=True, exist_ok=True)
    if run.trace is not None:
        run.trace.save(folder / "trace.npz")
        save_pictures(run.trace, folder)
    write_text(json.dumps(result, indent=1) + "\n", folder / "result.json")
    return result


def main(arguments: list[str] | None = None) -> None:
    """Train one network."""
    commands.run("cifar10", parse(arguments), train_one)


if __name__ == "__main__":
    main()
