"""What precision buys: accuracy of ResNets of many sizes against what they cost at 4 and 8 bits and in bfloat16.

    python -m recipes.pareto                                                    # the reduced study
    python -m recipes.pareto --blocks 3 --epochs 60 --subset 0 --multipliers 0.5 0.62 0.75 0.87 1 1.25 1.5 1.75 2
    python -m recipes.pareto report                                             # tables and figure

The sweep of "Pareto-Optimal Quantized ResNet Is Mostly 4-bit" (Abdolrashidi et al. 2021) on the CIFAR-10 pictures: a
ResNet whose numbers of filters are multiplied, trained from scratch by AQT with all layers at 4 bits, with 8 bits in
the first and the last layer, with all layers at 8 bits, and in bfloat16. Every finished run is appended as one line to
pareto.jsonl under --out. The same command given again skips finished runs and continues interrupted ones from their
last whole epoch. `report` needs these lines alone: it writes pareto.md and figures/pareto.png beside them, and with
--page a summary into the marked part of a Markdown file.

The defaults are a schedule for one CPU core and about an hour: ResNet-8 and five multipliers.
"""

import argparse
import sys

from recipes.common import commands, ledger, markdown
from recipes.common.data import load
from recipes.pareto.runs import LEDGER, PRECISIONS, ParetoSettings, costs, finish


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = commands.parser("pareto", __doc__)
    parser.add_argument("what", nargs="?", choices=("train", "report"), default="train")
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), help=f"of {', '.join(PRECISIONS)}")
    parser.add_argument("--multipliers", type=float, nargs="+", default=[1.0, 0.5, 2.0, 0.75, 1.5], help="of filters")
    parser.add_argument("--blocks", type=int, default=ParetoSettings.blocks, help="of each stage; 3: ResNet-20")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=ParetoSettings.epochs)
    parser.add_argument("--batch-size", type=int, default=ParetoSettings.batch_size)
    parser.add_argument("--subset", type=int, default=25_000, help="train on this many pictures only; 0: on all")
    commands.add_data(parser)
    commands.add_results(parser)
    return parser.parse_args(arguments)


def carry_out(options: argparse.Namespace) -> None:
    """Write and print the report, or make the missing runs, multiplier by multiplier."""
    if options.what == "report":
        # Training does not draw, and matplotlib takes a while to import.
        from recipes.pareto.report import summary, write
        from recipes.pareto.study import gather

        print(write(options.out), end="")
        if options.page is not None:
            markdown.insert(summary(gather(options.out / LEDGER)), "pareto", options.page)
        return
    schedule = {name: getattr(options, name) for name in ("blocks", "epochs", "batch_size")}
    plan = [
        ParetoSettings(method=precision, multiplier=multiplier, subset=options.subset or None, seed=seed, **schedule)
        for seed in options.seeds
        for multiplier in options.multipliers
        for precision in options.precisions
    ]
    splits = load("cifar10", options.data, download=not options.no_download)
    work = [costs(settings)["operations"] * settings.epochs for settings in plan]
    for settings in ledger.unfinished(plan, options.out / LEDGER, lambda s: s.steps_per_epoch(len(splits[0])), work):
        line = finish(settings, splits, options.out, device=options.device, progress=sys.stderr.isatty())
        print(f"accuracy {line['accuracy']:.4f} in {line['seconds']:.0f} s", flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Make the runs, or tables and figure of the finished ones."""
    commands.run("pareto", parse(arguments), carry_out)


if __name__ == "__main__":
    main()
