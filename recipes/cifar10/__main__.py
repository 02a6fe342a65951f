"""CIFAR-10 by the plain loop: ResNet-20, the CIFAR AlexNet or LeNet-5, in float32 or at a precision that adapts.

    python -m recipes.cifar10 --model resnet20 --method adapt --epochs 30 --data data --out runs/resnet20-adapt

Reads the official binary archive under --data and downloads it where it is missing. A run that was interrupted goes on
when the same command is given again. Writes checkpoint.pt, result.json and, under AdaPT, trace.npz and timeline.png.
"""

import argparse
from pathlib import Path

import torch

from recipes.common.data import DataError, load
from recipes.common.methods import names
from recipes.common.results import report, table
from recipes.common.training import SCHEDULES, Settings, recommended, train


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.cifar10", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=("resnet20", "alexnet", "lenet5"), default="resnet20")
    parser.add_argument("--method", default="adapt", help=f"one of {', '.join(names())}")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--schedule", choices=SCHEDULES, default="onecycle")
    parser.add_argument("--lr", type=float, help="peak (onecycle) or start (plateau) of the learning rate")
    parser.add_argument("--l1", type=float, help="coefficient α of the L1 penalty")
    parser.add_argument("--l2", type=float, help="coefficient β of the L2 penalty")
    parser.add_argument("--buffer-bits", type=int, help="default: 8 for resnet20, 4 for the others, as in the paper")
    parser.add_argument("--subset", type=int, help="train on the first so many pictures")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the data sets")
    parser.add_argument("--no-download", action="store_true", help="stop with an error where the data are missing")
    parser.add_argument("--out", type=Path, help="default: runs/MODEL-METHOD-SEED")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Train, write the result and print the table."""
    options = parse(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    given = {
        name: getattr(options, name)
        for name in ("lr", "l1", "l2", "buffer_bits")
        if getattr(options, name) is not None
    }  # fmt: skip
    try:
        settings = Settings(
            data_set="cifar10", model=options.model, method=options.method, epochs=options.epochs,
            batch_size=options.batch_size, schedule=options.schedule, subset=options.subset, seed=options.seed,
            **{**recommended(options.model, options.method), **given},
        )  # fmt: skip
        folder = options.out or Path("runs", f"{options.model}-{options.method}-{options.seed}")
        splits = load("cifar10", options.data, download=not options.no_download)
        run = train(settings, splits, folder, device=options.device)
    except (DataError, ValueError) as error:
        raise SystemExit(f"recipes.cifar10: {error}") from error
    print(table([report(run, folder)]))
    print(f"Everything about the run is in {folder}")


if __name__ == "__main__":
    main()
