"""The command `adapt`."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adapt import __version__
from adapt.export import command
from adapt.profiling.command import add_profile
from adapt.trace import Trace

_FORMATS = {"json": "as_json", "md": "as_markdown", "csv": "as_csv"}
"""The functions of `adapt.report.output_formats`, by format."""


_EXAMPLES = """examples:
  adapt report trace.npz                          a table of every layer's precision
  adapt report run-a run-b --html report.html     one page over two runs, to be opened in a browser
  adapt report run-a run-b --format json          the same figures for other programs
  adapt show network.safetensors                  what is in a trace, a checkpoint or a packed file
  adapt export last.ckpt --model models:resnet20 -o network.safetensors
                                                  the network of a checkpoint in the bits that it needs

exit codes:
  0  success
  1  the command failed; one line on stderr says why
  2  the arguments could not be parsed
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 on success, 1 on failure, 2 for wrong arguments.

    Args:
        arguments: the words after the command's name; by default those of `sys.argv`.
    """
    parser = _parser()
    if not (sys.argv[1:] if arguments is None else arguments):
        parser.print_help(sys.stderr)
        parser.exit(2)
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="adapt",
        description="Training runs at adaptive precision: reports, files for devices, and modelled costs.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"adapt {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    report = commands.add_parser(
        "report",
        help="print what happened to every layer's precision",
        description="Show every layer's precision over one or several runs, and what the runs saved: as a table, as "
        "JSON, Markdown or CSV, or as a page for the browser.",
    )
    report.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="a trace (.npz), or the folder that holds one"
    )
    report.add_argument(
        "--format", choices=("text", *_FORMATS), default="text", help="how to print the figures (default: text)"
    )
    report.add_argument(
        "--pictures", type=Path, metavar="DIR", help="also draw PNG pictures of one run into this folder"
    )
    report.add_argument(
        "--html",
        type=Path,
        metavar="FILE",
        help="write one page over all runs instead, to be opened in a browser; it needs no network",
    )
    report.set_defaults(act=_report)
    command.add_export(commands)
    command.add_show(commands, _table)
    add_profile(commands, _figures)
    return parser


def _report(options: argparse.Namespace) -> None:
    from adapt.export.packed import stored_bytes
    from adapt.report import output_formats, runs, save_pictures

    if options.html is not None:
        _write_page(options)
        return
    pictures = options.pictures
    if pictures is not None and pictures.is_file():
        raise ValueError(f"--pictures {pictures} is a file: name a folder for the pictures")
    if pictures is not None and len(options.runs) > 1:
        raise ValueError(f"--pictures draws one run, got {len(options.runs)}: name one")
    if pictures is not None and options.format != "text":
        raise ValueError(f"--pictures goes with --format text alone, got {options.format}")
    if options.format == "text":
        heads = [f"{run}\n\n" if len(options.runs) > 1 else "" for run in options.runs]
        print("\n\n".join(head + _table(run) for head, run in zip(heads, options.runs, strict=True)))
    else:
        figures = [runs.load_run(run, stored_bytes).figures() for run in options.runs]
        print(getattr(output_formats, _FORMATS[options.format])(figures))
    if pictures is not None:
        for picture in save_pictures(Trace.load(runs.find_trace(options.runs[0])), pictures):
            print(f"drawn: {picture}")


def _write_page(options: argparse.Namespace) -> None:
    from adapt.export.packed import stored_bytes
    from adapt.files import replacing
    from adapt.report.page import as_html
    from adapt.report.runs import load_run

    path = options.html
    if path.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--html must name a file that ends in .html, got {path}")
    if options.format != "text" or options.pictures is not None:
        raise ValueError("--html goes with neither --format nor --pictures: run the command twice")
    page = as_html([load_run(run, stored_bytes) for run in options.runs]).encode()
    with replacing(path) as file:
        file.write(page)
    print(f"{path}: {len(page):,} bytes")


def _table(run: Path) -> str:
    """Return the table of a trace, or of a folder that contains one."""
    from adapt.report import table
    from adapt.report.runs import find_trace, load_widths

    path = find_trace(run)
    trace = Trace.load(path)
    try:
        return table(trace, load_widths(path.parent))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _figures(run: Path) -> tuple[Trace, list[dict[str, Any]]]:
    """Return the trace at a path, and the figures of its layers."""
    from adapt.report.runs import load_run
    from adapt.report.summary import summary

    loaded = load_run(run)
    return loaded.trace, summary(loaded.trace, widths=loaded.widths)


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())
