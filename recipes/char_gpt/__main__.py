"""A small GPT over characters: bits per character on held-out text, in float32 and at adaptive precision.

    python -m recipes.char_gpt --methods float32 compact --seeds 0 1 2           # those of these runs that are missing
    python -m recipes.char_gpt report                                            # the table of the finished runs

Every method trains for the same steps by AdamW, from the same initial weights and on the same excerpts; the embeddings
and the head are layers like the others. Every finished run is appended as one line to char_gpt.jsonl under --out. The
same command given again skips finished runs and continues interrupted ones.
"""

import argparse
import sys
from pathlib import Path

from recipes.char_gpt.report import LEDGER, write
from recipes.char_gpt.training import GPTSettings, train
from recipes.common import commands, ledger
from recipes.common.records import checkpoint_folder, record
from recipes.common.text import Text, load

SHAPE = ("epochs", "steps_per_epoch", "batch_size", "context", "layers", "width", "lr")
"""Settings that the command line can change."""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = commands.parser("char_gpt", __doc__)
    parser.add_argument("what", nargs="?", choices=("train", "report"), default="train")
    parser.add_argument("--methods", nargs="+", default=["float32", "adapt", "compact", "muppet"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=GPTSettings.epochs, help="each ends with an evaluation")
    parser.add_argument("--steps-per-epoch", type=int, default=GPTSettings.steps_per_epoch)
    parser.add_argument("--batch-size", type=int, default=GPTSettings.batch_size)
    parser.add_argument("--context", type=int, default=GPTSettings.context)
    parser.add_argument("--layers", type=int, default=GPTSettings.layers)
    parser.add_argument("--width", type=int, default=GPTSettings.width)
    parser.add_argument("--lr", type=float, default=GPTSettings.lr, help="peak of the learning rate")
    parser.add_argument(
        "--data", type=Path, default=Path("data/tinyshakespeare"), help="a text, or the folder of input.txt"
    )
    parser.add_argument("--address", help="a folder on the network that has input.txt")
    parser.add_argument("--no-download", action="store_true", help="stop with an error where the text is missing")
    commands.add_results(parser, page=False)
    return parser.parse_args(arguments)


def carry_out(options: argparse.Namespace) -> None:
    """Print the report, or make the missing runs, seed by seed."""
    if options.what == "report":
        print(write(options.out))
        return
    text = load(options.data, address=options.address, download=not options.no_download)
    plan = [
        GPTSettings(text=text.digest, method=name, seed=seed, **{name: getattr(options, name) for name in SHAPE})
        for seed in options.seeds
        for name in options.methods
    ]
    path = options.out / LEDGER
    for settings in ledger.unfinished(plan, path, lambda settings: settings.steps_per_epoch):
        line = finish(settings, text, path, device=options.device, progress=sys.stderr.isatty())
        print(f"{line['bits_per_character']:.4f} bits per character in {line['seconds']:.0f} s", flush=True)


def finish(settings: GPTSettings, text: Text, path: Path, *, device: str, progress: bool) -> ledger.Line:
    """Train to the end, from the last whole epoch of an interrupted run; append the line to `path` and return it."""
    identity = settings.identity(settings.steps_per_epoch)
    run = train(settings, text, checkpoint_folder(path, identity), device=device, progress=progress)
    return record(run, identity, path, score="bits_per_character", command=command(settings, device))


def command(settings: GPTSettings, device: str) -> str:
    """The command that repeats this run, wherever its text is."""
    shape = (word for name in SHAPE for word in (f"--{name.replace('_', '-')}", getattr(settings, name)))
    return commands.command("char_gpt", "--methods", settings.method, "--seeds", settings.seed, *shape, device=device)


def main(arguments: list[str] | None = None) -> None:
    """Make the runs, or the table of the finished ones."""
    commands.run("char_gpt", parse(arguments), carry_out)


if __name__ == "__main__":
    main()
