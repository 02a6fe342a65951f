"""AdaPT's tables 1 to 6 and figures 3 to 8 (Kummer et al. 2021, section 4), beside MuPPET, float32 and the ablations.

    python -m recipes.adapt_tables cifar10-resnet20 --epochs 10 --subset 25000 --seeds 0 1 2   # one row
    python -m recipes.adapt_tables all                                                         # every row
    python -m recipes.adapt_tables report --page docs/results.md                                   # tables and figures

A row trains one network on one data set by each method with each seed. Every finished run is appended as one line to
adapt_tables.jsonl under --out, and its thinned trace goes to traces/. The same command given again skips finished runs
and continues interrupted ones from their last whole epoch. `report` needs these files alone: it writes adapt_tables.md
and figures/ beside them and prints a summary, which --page inserts into the marked part of a Markdown file.
"""

import argparse
import sys

from recipes.adapt_tables.report import write
from recipes.adapt_tables.rows import ROWS
from recipes.adapt_tables.runs import LEDGER, finish
from recipes.common import commands, ledger, markdown
from recipes.common.classification import SCHEDULES, ClassifierSettings, recommended
from recipes.common.data import load


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = commands.parser("adapt_tables", __doc__)
    parser.add_argument(
        "what", choices=(*ROWS, "all", "report"), metavar="WHAT", help=", ".join((*ROWS, "all", "report"))
    )
    parser.add_argument("--methods", nargs="+", help="default: those of the row")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--schedule", choices=SCHEDULES, default="onecycle")
    parser.add_argument("--subset", type=int, help="train on this many pictures only")
    commands.add_data(parser)
    commands.add_results(parser)
    return parser.parse_args(arguments)


def carry_out(options: argparse.Namespace) -> None:
    """Write and print the report, or make the missing runs.

    Runs go seed by seed, so that comparisons between methods are complete early.
    """
    if options.what == "report":
        summary = write(options.out)
        print(summary)
        if options.page is not None:
            markdown.insert(summary, "adapt_tables", options.page)
        return
    for row in ROWS.values() if options.what == "all" else (ROWS[options.what],):
        plan = [
            ClassifierSettings(
                data_set=row.data_set, model=row.model, method=name, epochs=options.epochs,
                batch_size=options.batch_size, schedule=options.schedule, subset=options.subset, seed=seed,
                **recommended(row.model, name, row.data_set),
            )
            for seed in options.seeds
            for name in options.methods or row.methods
        ]  # fmt: skip
        splits = load(row.data_set, options.data, download=not options.no_download)
        pictures = len(splits[0])
        for settings in ledger.unfinished(plan, options.out / LEDGER, lambda s, n=pictures: s.steps_per_epoch(n)):
            line = finish(settings, splits, options.out, device=options.device, progress=sys.stderr.isatty())
            print(f"accuracy {line['accuracy']:.4f} in {line['seconds']:.0f} s", flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Make the runs, or tables and figures of the finished ones."""
    commands.run("adapt_tables", parse(arguments), carry_out)


if __name__ == "__main__":
    main()
