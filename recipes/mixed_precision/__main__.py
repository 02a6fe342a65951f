"""Learned bit widths against LSQ at the same bytes, float32 and compact, from one start (Schaefer et al. 2023).

    python -m recipes.mixed_precision --models resnet20 --methods float32 lsq learned --bits 4   # these runs
    python -m recipes.mixed_precision                                                            # all runs
    python -m recipes.mixed_precision report                                                     # table and picture

For each network and seed a float32 start is trained once. From it every method tunes the network for the same epochs:
float32 itself, LSQ at the given bits for all weights and activations, learned widths within the bytes of each LSQ, and
AdaPT's compact preset. First and last layers are layers like the others. Every finished run is appended as one line to
mixed_precision.jsonl under --out. The same command given again skips what is finished and goes on with what was
interrupted, from its last whole epoch. `report` needs these lines alone: it writes mixed_precision.md and
figures/mixed_precision.png beside them and prints a summary, which --readme puts between two marks of a Markdown file.

The defaults are a schedule for two CPU cores: half of the pictures, and a MobileNetV2 of a quarter of the channels.
"""

import argparse
import sys
from pathlib import Path

import torch

from recipes.common import ledger
from recipes.common.data import load
from recipes.common.download import DataError
from recipes.common.marks import put
from recipes.mixed_precision.points import BITS, KINDS, Settings, chosen
from recipes.mixed_precision.report import write
from recipes.mixed_precision.runs import LEDGER, finish, identity


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.mixed_precision",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", nargs="?", choices=("train", "report"), default="train")
    parser.add_argument("--models", nargs="+", default=["resnet20", "mobilenet-v2-quarter"])
    parser.add_argument("--methods", nargs="+", default=list(KINDS), help=f"of {', '.join(KINDS)}")
    parser.add_argument(
        "--bits", type=int, nargs="+", default=[4, 3, 2, 8], help=f"of lsq and learned, {BITS[0]} to {BITS[-1]}"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--start-epochs", type=int, default=Settings.start_epochs, help="of the float32 start")
    parser.add_argument("--epochs", type=int, default=Settings.epochs, help="of the tuning")
    parser.add_argument("--batch-size", type=int, default=Settings.batch_size)
    parser.add_argument("--subset", type=int, default=25_000, help="train on the first so many pictures; 0: on all")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the data sets")
    parser.add_argument("--no-download", action="store_true", help="stop with an error where the data are missing")
    parser.add_argument("--out", type=Path, default=Path("recipes/results"), help="folder of the results")
    parser.add_argument("--readme", type=Path, help="with report: a Markdown file whose marked part is the summary")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads")
    return parser.parse_args(arguments)


def train_all(options: argparse.Namespace) -> None:
    """Make the runs that are missing, network by network and seed by seed."""
    schedule = {name: getattr(options, name) for name in ("start_epochs", "epochs", "batch_size")}
    plan = [
        Settings(model, method, subset=options.subset or None, seed=seed, **schedule)
        for model in options.models
        for seed in options.seeds
        for method in chosen(options.methods, options.bits)
    ]
    splits = load("cifar10", options.data, download=not options.no_download)
    for settings in ledger.unfinished(
        plan,
        options.out / LEDGER,
        identity=lambda run: identity(run, len(splits[0])),
        title=lambda run: f"{run.model} {run.method}, seed {run.seed}",
    ):
        line = finish(settings, splits, options.out, device=options.device, progress=sys.stderr.isatty())
        kilobytes = line["weight_kilobytes"] + line["activation_kilobytes"]
        print(f"accuracy {line['accuracy']:.4f} with {kilobytes:.1f} kB in {line['seconds']:.0f} s", flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Make the runs, or table and picture of those that there are."""
    options = parse(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    try:
        if options.what == "report":
            text = write(options.out)
            print(text)
            if options.readme is not None:
                put(text, "mixed_precision", options.readme)
        else:
            train_all(options)
    except (DataError, ValueError) as error:
        raise SystemExit(f"recipes.mixed_precision: {error}") from error


if __name__ == "__main__":
    main()
