"""A small GPT over characters: bits per character on held-out text in float32 and at precisions that adapt.

    python -m recipes.char_gpt --methods float32 compact --seeds 0 1 2           # what is missing of these runs
    python -m recipes.char_gpt report                                            # the table of those there are

AdamW with a controller attached trains every method for the same steps from the same start on the same excerpts; the
embeddings and the head are layers like the others. Every finished run is appended as one line to char_gpt.jsonl under
--out. The same command given again skips what is finished and goes on with what was interrupted.
"""

import argparse
import shlex
import sys
from pathlib import Path

import torch

from adapt import perfmodel
from recipes.char_gpt.report import LEDGER, write
from recipes.char_gpt.text import Text, load
from recipes.char_gpt.training import Settings, identity, train
from recipes.common import ledger
from recipes.common.conclusion import checkpoint_folder, conclude
from recipes.common.download import DataError


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.char_gpt", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", choices=("train", "report"), default="train")
    parser.add_argument("--methods", nargs="+", default=["float32", "adapt", "compact", "muppet"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=Settings.epochs, help="evaluations; the last epoch ends the run")
    parser.add_argument("--steps-per-epoch", type=int, default=Settings.steps_per_epoch)
    parser.add_argument("--batch-size", type=int, default=Settings.batch_size)
    parser.add_argument("--context", type=int, default=Settings.context)
    parser.add_argument("--layers", type=int, default=Settings.layers)
    parser.add_argument("--width", type=int, default=Settings.width)
    parser.add_argument("--lr", type=float, default=Settings.lr, help="peak of the learning rate")
    parser.add_argument(
        "--data", type=Path, default=Path("data/tinyshakespeare"), help="a text, or the folder of input.txt"
    )
    parser.add_argument("--address", help="a folder on the network that has input.txt")
    parser.add_argument("--no-download", action="store_true", help="stop with an error where the text is missing")
    parser.add_argument("--out", type=Path, default=Path("recipes/results"), help="folder of the results")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads")
    return parser.parse_args(arguments)


def train_all(options: argparse.Namespace) -> None:
    """Make the runs that are missing, seed by seed."""
    text = load(options.data, address=options.address, download=not options.no_download)
    names = ("epochs", "steps_per_epoch", "batch_size", "context", "layers", "width", "lr")
    plan = [
        Settings(text.digest, name, seed=seed, **{option: getattr(options, option) for option in names})
        for seed in options.seeds
        for name in options.methods
    ]
    path = options.out / LEDGER
    for settings in ledger.unfinished(plan, path, identity, lambda run: f"{run.method}, seed {run.seed}"):
        line = finish(settings, text, path, device=options.device, progress=sys.stderr.isatty())
        print(f"{line['bits_per_character']:.4f} bits per character in {line['seconds']:.0f} s", flush=True)


def finish(settings: Settings, text: Text, path: Path, *, device: str, progress: bool) -> ledger.Line:
    """Train until the end, from the last whole epoch of an earlier try; append the line to `path` and answer it."""
    decided = identity(settings)
    run = train(settings, text, checkpoint_folder(path, decided), device=device, progress=progress)
    example = torch.zeros(1, *run.shape, dtype=torch.int64, device=device)
    operations = perfmodel.operations(run.model, example)
    return conclude(run, decided, operations, path, score="bits_per_character", command=command(settings, device))


def command(settings: Settings, device: str) -> str:
    """What makes this run alone, wherever its text lies."""
    words = [
        "python", "-m", "recipes.char_gpt", "--methods", settings.method, "--seeds", settings.seed,
        "--epochs", settings.epochs, "--steps-per-epoch", settings.steps_per_epoch,
        "--batch-size", settings.batch_size, "--context", settings.context, "--layers", settings.layers,
        "--width", settings.width, "--lr", settings.lr, "--device", device, "--threads", torch.get_num_threads(),
    ]  # fmt: skip
    return shlex.join(map(str, words))


def main(arguments: list[str] | None = None) -> None:
    """Make the runs, or the table of those that there are."""
    options = parse(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    try:
        if options.what == "report":
            print(write(options.out))
        else:
            train_all(options)
    except (DataError, ValueError) as error:
        raise SystemExit(f"recipes.char_gpt: {error}") from error


if __name__ == "__main__":
    main()
