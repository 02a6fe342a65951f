"""Learned bit widths against LSQ at the same bytes, float32 and compact, from one start (Schaefer et al. 2023).

    python -m recipes.mixed_precision --models resnet20 --methods float32 lsq learned --bits 4   # these runs
    python -m recipes.mixed_precision                                                            # all runs
    python -m recipes.mixed_precision report                                                     # table and figure

For each network and seed a float32 start is trained once. From it every method tunes the network for the same epochs:
float32 itself, LSQ at the given bits for all weights and activations, learned widths within the bytes of each LSQ, and
AdaPT's compact preset. First and last layers are layers like the others. Every finished run is appended as one line to
mixed_precision.jsonl under --out. The same command given again skips finished runs and continues interrupted ones from
their last whole epoch. `report` needs these lines alone: it writes mixed_precision.md and figures/mixed_precision.png
beside them and prints a summary, which --page inserts into the marked part of a Markdown file.

The defaults are a schedule for two CPU cores: half of the pictures, and a MobileNetV2 of a quarter of the channels.
"""

import argparse
import sys

from recipes.common import commands, ledger, markdown
from recipes.common.data import load
from recipes.mixed_precision.methods import BITS, KINDS, TuningSettings, chosen
from recipes.mixed_precision.report import write
from recipes.mixed_precision.runs import LEDGER, finish


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = commands.parser("mixed_precision", __doc__)
    parser.add_argument("what", nargs="?", choices=("train", "report"), default="train")
    parser.add_argument("--models", nargs="+", default=["resnet20", "mobilenet-v2-quarter"])
    parser.add_argument("--methods", nargs="+", default=list(KINDS), help=f"of {', '.join(KINDS)}")
    parser.add_argument(
        "--bits", type=int, nargs="+", default=[4, 3, 2, 8], help=f"of lsq and learned, {BITS[0]} to {BITS[-1]}"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--start-epochs", type=int, default=TuningSettings.start_epochs, help="of the float32 start")
    parser.add_argument("--epochs", type=int, default=TuningSettings.epochs, help="of the tuning")
    parser.add_argument("--batch-size", type=int, default=TuningSettings.batch_size)
    parser.add_argument("--subset", type=int, default=25_000, help="train on this many pictures only; 0: on all")
    commands.add_data(parser)
    commands.add_results(parser)
    return parser.parse_args(arguments)


def carry_out(options: argparse.Namespace) -> None:
    """Write and print the report, or make the missing runs, network by network and seed by seed."""
    if options.what == "report":
        summary = write(options.out)
        print(summary)
        if options.page is not None:
            markdown.insert(summary, "mixed_precision", options.page)
        return
    schedule = {name: getattr(options, name) for name in ("start_epochs", "epochs", "batch_size")}
    plan = [
        TuningSettings(model=model, method=method, subset=options.subset or None, seed=seed, **schedule)
        for model in options.models
        for seed in options.seeds
        for method in chosen(options.methods, options.bits)
    ]
    splits = load("cifar10", options.data, download=not options.no_download)
    for settings in ledger.unfinished(plan, options.out / LEDGER, lambda s: s.steps_per_epoch(len(splits[0]))):
        line = finish(settings, splits, options.out, device=options.device, progress=sys.stderr.isatty())
        kilobytes = line["weight_kilobytes"] + line["activation_kilobytes"]
        print(f"accuracy {line['accuracy']:.4f} with {kilobytes:.1f} kB in {line['seconds']:.0f} s", flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Make the runs, or table and figure of the finished ones."""
    commands.run("mixed_precision", parse(arguments), carry_out)


if __name__ == "__main__":
    main()
