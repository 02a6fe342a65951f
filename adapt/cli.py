"""The command `adapt`."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from adapt import __version__
from adapt.export import command
from adapt.trace import Trace


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 on success, 1 on failure, 2 for wrong arguments.

    Args:
        arguments: the words after the command's name; those of `sys.argv` by default.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        options.act(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # A reader such as `head` has closed the pipe. Python's own flush at exit would fail on it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError, TypeError, NotImplementedError, ImportError) as error:
        print(f"adapt {options.command}: {_one_line(error)}", file=sys.stderr)
        return 1
    return 0


def find_trace(run: Path) -> Path:
    """Return the file that a path names: the path itself, or a folder's trace.npz or only .npz file.

    Raises:
        ValueError: the folder has no .npz file, or several of which none is called trace.npz.
    """
    if not run.is_dir():
        return run
    found = sorted(path for path in run.glob("*.npz") if path.is_file())
    if not found:
        raise ValueError(f"{run} has no trace: there is no .npz file in it; name the file or the folder that has one")
    if run / "trace.npz" in found:
        return run / "trace.npz"
    if len(found) > 1:
        names = ", ".join(path.name for path in found[:5])
        raise ValueError(f"{run} has {len(found)} .npz files ({names}): name the one that you mean")
    return found[0]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="adapt", description="Training runs at adaptive precision: what happened, and what comes of them."
    )
    parser.add_argument("--version", action="version", version=f"adapt {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    report = commands.add_parser(
        "report",
        help="print what happened to every layer's precision",
        description="Print a table of every layer's precision over a run, and what the run saved.",
    )
    report.add_argument("run", type=Path, metavar="RUN", help="a trace (.npz), or the folder that holds one")
    report.add_argument("--pictures", type=Path, metavar="DIR", help="also draw PNG pictures into this folder")
    report.set_defaults(act=_report)
    command.add_export(commands)
    command.add_show(commands, _table)
    return parser


def _report(options: argparse.Namespace) -> None:
    from adapt.report import save_pictures

    if options.pictures is not None and options.pictures.is_file():
        raise ValueError(f"--pictures {options.pictures} is a file: name a folder for the pictures")
    print(_table(options.run))
    if options.pictures is not None:
        for picture in save_pictures(Trace.load(find_trace(options.run)), options.pictures):
            print(f"drawn: {picture}")


def _table(run: Path) -> str:
    """The table of a trace, or of a folder that holds one."""
    from adapt.report import table

    path = find_trace(run)
    trace = Trace.load(path)
    try:
        return table(trace)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())
