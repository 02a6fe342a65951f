"""The command-line options, error handling and repeatable commands that recipes share."""

import argparse
import shlex
from collections.abc import Callable
from pathlib import Path

import torch

from recipes.common.download import DataError


def parser(recipe: str, description: str | None) -> argparse.ArgumentParser:
    """A parser with the options --device and --threads, which shows the recipe's docstring unchanged."""
    parser = argparse.ArgumentParser(
        prog=f"python -m recipes.{recipe}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads")
    return parser


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where the pictures are."""
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the data sets")
    parser.add_argument("--no-download", action="store_true", help="stop with an error where the data are missing")


def add_results(parser: argparse.ArgumentParser, *, page: bool = True) -> None:
    """Add the options that say where results and summary go."""
    parser.add_argument("--out", type=Path, default=Path("recipes/results"), help="folder of the results")
    if page:
        parser.add_argument("--page", type=Path, help="with report: a Markdown file whose marked part is the summary")


def run(recipe: str, options: argparse.Namespace, action: Callable[[argparse.Namespace], None]) -> None:
    """Carry out a command; an error that the user can fix ends it with one sentence."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    try:
        action(options)
    except (DataError, ValueError) as error:
        raise SystemExit(f"recipes.{recipe}: {error}") from error


def command(recipe: str, *words: object, device: str) -> str:
    """The command that repeats a single run, wherever its data are."""
    threads = torch.get_num_threads()
    return shlex.join(
        ["python", "-m", f"recipes.{recipe}", *map(str, words), "--device", device, "--threads", str(threads)]
    )
