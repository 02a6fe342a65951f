"""Fewer parameters or fewer bits? For each precision the largest network within a memory budget, trained by LSQ.

    python -m recipes.tradeoff --task pictures --budget 40                   # ResNets on CIFAR-10
    python -m recipes.tradeoff --task pictures-efficientnet --budget 40      # light EfficientNets
    python -m recipes.tradeoff --task text --budget 60                       # transformers on tinyshakespeare
    python -m recipes.tradeoff --task keywords --data speech_commands        # a ResNet on spoken words; or keywords-gru
    python -m recipes.tradeoff --task mine:Task --budget 100                 # a class of your own, see tasks.py
    python -m recipes.tradeoff report                                        # tables and figures

The study of "Exploring the trade-off between model complexity and numerical precision" (2024). The footprint is
parameters·b_p + largest activation·b_a. For each b_p the network is scaled until it fills the budget, in width and
depth alike ("compound") or in width alone, and activations have b_a = b_p + k bits; --extra-bits without numbers leaves
them in float32, as text does by default. A kB is 8000 bits. Every finished run is appended as one line to
tradeoff.jsonl under --out. The same command given again skips finished runs and continues interrupted ones from their
last whole epoch. `report` needs these lines alone: it writes tradeoff.md and a figure for each task and budget,
and with --page a summary into the marked part of a Markdown file.

The defaults are a schedule for one CPU core and about an hour: of the pictures half, and four epochs.
"""

import argparse
import sys
from pathlib import Path

from recipes.common import commands, ledger, markdown
from recipes.tradeoff.runs import FLOAT, LONGEST, finish, plan, scaled
from recipes.tradeoff.scaling import SCALINGS
from recipes.tradeoff.tasks import TASKS, find

LEDGER = "tradeoff.jsonl"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = commands.parser("tradeoff", __doc__)
    parser.add_argument("what", nargs="?", choices=("train", "report"), default="train")
    parser.add_argument("--task", default="pictures", help=f"{', '.join(TASKS)}, or module:class of your own")
    parser.add_argument("--budget", type=float, default=40.0, help="kB of 8000 bits")
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 32, 4, 3, 8, 6], help="b_p: 1 to 8, or 32")
    parser.add_argument("--extra-bits", type=int, nargs="*", help="k: bits of activations above those of parameters")
    parser.add_argument("--scalings", nargs="+", choices=SCALINGS, default=["compound"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, help="by default the task's own")
    parser.add_argument("--subset", type=int, help="train on this much of the data only; 0: on all")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the data")
    parser.add_argument("--no-download", action="store_true", help="stop with an error where the data are missing")
    commands.add_results(parser)
    return parser.parse_args(arguments)


def carry_out(options: argparse.Namespace) -> None:
    """Write and print the report, or make the missing runs.

    Raises:
        ValueError: bits that LSQ does not have, no such task, or a budget that nothing fits.
    """
    path = options.out / LEDGER
    if options.what == "report":
        # Training does not draw, and matplotlib takes a while to import.
        from recipes.tradeoff.report import summary, write
        from recipes.tradeoff.study import gather

        print(write(path), end="")
        if options.page is not None:
            markdown.insert(summary(gather(path)), "tradeoff", options.page)
        return
    for bits in options.bits:
        if bits not in (*range(1, LONGEST + 1), FLOAT):
            raise ValueError(f"bits must be 1 to {LONGEST}, or {FLOAT}, got {bits}")
    task = find(options.task)
    runs = plan(task, options.task, options)
    task.load(options.data, download=not options.no_download)
    # A step takes about as long as its network has parameters and activations.
    sizes = {settings: scaled(task, settings) for settings in runs}
    work = [
        settings.epochs * (8.0 * sizes[settings].footprint.activation + sizes[settings].footprint.parameters)
        for settings in runs
    ]
    for settings in ledger.unfinished(runs, path, lambda settings: 1, work):
        line = finish(settings, task, sizes[settings], path, device=options.device, progress=sys.stderr.isatty())
        print(f"{task.unit} {line[task.score]:.4f} in {line['seconds']:.0f} s", flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Make the runs, or tables and figures of the finished ones."""
    commands.run("tradeoff", parse(arguments), carry_out)


if __name__ == "__main__":
    main()
