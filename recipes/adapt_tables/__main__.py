"""AdaPT's tables 1 to 6 and figures 3 to 8 (Kummer et al. 2021, section 4), beside MuPPET, float32 and the ablations.

    python -m recipes.adapt_tables cifar10-resnet20 --epochs 10 --subset 25000 --seeds 0 1 2   # one row
    python -m recipes.adapt_tables all                                                         # every row
    python -m recipes.adapt_tables report --readme README.md                                   # tables and figures

A row trains one network on one data set by each method with each seed. Every finished run is appended as one line to
adapt_tables.jsonl under --out, and its trace, thinned, goes to traces/. The same command given again skips what is
finished and goes on with what was interrupted, from its last whole epoch. `report` needs these files alone: it writes
adapt_tables.md and figures/ beside them and prints a summary, which --readme puts between two marks of a Markdown file.
"""

import argparse
import sys
from pathlib import Path

import torch

from recipes.adapt_tables.report import write
from recipes.adapt_tables.rows import ROWS
from recipes.adapt_tables.runs import LEDGER, finish, identity
from recipes.common import ledger
from recipes.common.data import DataError, load
from recipes.common.marks import put
from recipes.common.training import SCHEDULES, Settings, recommended


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.adapt_tables", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "what", choices=(*ROWS, "all", "report"), metavar="WHAT", help=", ".join((*ROWS, "all", "report"))
    )
    parser.add_argument("--methods", nargs="+", help="default: those of the row")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--schedule", choices=SCHEDULES, default="onecycle")
    parser.add_argument("--subset", type=int, help="train on the first so many pictures")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the data sets")
    parser.add_argument("--no-download", action="store_true", help="stop with an error where the data are missing")
    parser.add_argument("--out", type=Path, default=Path("recipes/results"), help="folder of the results")
    parser.add_argument("--readme", type=Path, help="with report: a Markdown file whose marked part is the summary")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads")
    return parser.parse_args(arguments)


def train_rows(options: argparse.Namespace) -> None:
    """Make the runs that are missing, seed by seed, so that comparisons between methods are complete early."""
    for row in ROWS.values() if options.what == "all" else (ROWS[options.what],):
        plan = [
            Settings(
                data_set=row.data_set, model=row.model, method=name, epochs=options.epochs,
                batch_size=options.batch_size, schedule=options.schedule, subset=options.subset, seed=seed,
                **recommended(row.model, name, row.data_set),
            )
            for seed in options.seeds
            for name in options.methods or row.methods
        ]  # fmt: skip
        splits = load(row.data_set, options.data, download=not options.no_download)
        pictures = len(splits[0])
        for settings in ledger.unfinished(
            plan,
            options.out / LEDGER,
            identity=lambda run, pictures=pictures: identity(run, pictures),
            title=lambda run: f"{run.data_set} {run.model} {run.method}, seed {run.seed}",
        ):
            line = finish(settings, splits, options.out, device=options.device, progress=sys.stderr.isatty())
            print(f"accuracy {line['accuracy']:.4f} in {line['seconds']:.0f} s", flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Make the runs, or tables and figures of those that there are."""
    options = parse(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    try:
        if options.what == "report":
            print(text := write(options.out))
            if options.readme is not None:
                put(text, "adapt_tables", options.readme)
        else:
            train_rows(options)
    except (DataError, ValueError) as error:
        raise SystemExit(f"recipes.adapt_tables: {error}") from error


if __name__ == "__main__":
    main()
