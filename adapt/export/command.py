"""`adapt export` and `adapt show`: artefacts from the command line, and what is in a file."""

import argparse
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adapt import export
from adapt.command_line import make_model
from adapt.engine.saved_formats import formats
from adapt.export import packed
from adapt.export.described import describe_formats, describe_packed
from adapt.export.exported import Exported
from adapt.export.hls4ml import simulation
from adapt.export.json_file import to_json
from adapt.export.onnx import FORMS
from adapt.numerics import json_table

TARGETS = ("packed", "onnx", "qonnx", "hls4ml", "json")


def add_export(commands: Any) -> None:
    """Add `adapt export` to a parser's commands."""
    command = commands.add_parser(
        "export",
        help="write a checkpoint's network for a device, and prove that it computes the same",
        description="Write the network of a checkpoint, or of a packed file, for a device. Print its bytes beside "
        "those of float32, and how its outputs compare with those of the captured network.",
    )
    command.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a checkpoint, or a packed file")
    command.add_argument(
        "--model",
        metavar="MODULE:FUNCTION",
        help="a function without arguments that makes the network, such as mypackage.models:resnet20; this imports and "
        "runs it. Needed for all but json",
    )
    command.add_argument("--to", choices=TARGETS, default="packed", help="what to write (default: packed)")
    command.add_argument(
        "--form", choices=FORMS, default="qdq", help="of an ONNX file: see adapt.export.to_onnx (default: qdq)"
    )
    command.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="where to write it")
    command.add_argument(
        "--inputs", type=Path, metavar="NPY", help="a batch of inputs to prove equality with, a NumPy file (.npy)"
    )
    command.add_argument(
        "--shape", metavar="N,…", help="prove it with random inputs of this shape instead, such as 64,3,32,32"
    )
    command.set_defaults(act=run_export)


def add_show(commands: Any, show_trace: Callable[[Path], str]) -> None:
    """Add `adapt show` to a parser's commands.

    Args:
        commands: the parser's commands.
        show_trace: makes the table of a trace, or of a folder that holds one.
    """
    command = commands.add_parser(
        "show",
        help="print what is in a trace, a checkpoint or a packed file",
        description="Print the table of a trace, the formats in a checkpoint, or what a packed file holds. Nothing in "
        "the file is executed.",
    )
    command.add_argument(
        "file", type=Path, metavar="FILE", help="a trace, a checkpoint, a packed file, or a run's folder"
    )
    command.set_defaults(act=lambda options: print(show(options.file, show_trace)))


def show(path: Path, show_trace: Callable[[Path], str]) -> str:
    """Return what is in a trace, a checkpoint, a table of formats or a packed file, as text.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is none of these, or damaged.
    """
    if path.is_dir() or path.suffix == ".npz":
        return show_trace(path)
    if _is_packed(path):
        return describe_packed(packed.read(path), packed.stored_bytes(path), path.stat().st_size)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            is_trace = all(name.endswith(".npy") for name in archive.namelist())
        return show_trace(path) if is_trace else describe_formats(formats(path))
    if json_table.is_json(path):
        return describe_formats(formats(path))
    raise ValueError(f"{path} is no trace, checkpoint, table of formats or packed file")


def run_export(options: argparse.Namespace) -> None:
    """Write what the options ask for, and print its bytes and the proof.

    Raises:
        OSError, ValueError, TypeError, ImportError: an argument does not fit, or a file cannot be read or written.
    """
    if options.to == "json":
        source = options.checkpoint
        to_json(packed.read(source).formats if _is_packed(source) else formats(source), options.output)
        print(f"{options.output}: {_bytes(options.output):,} bytes")
        return
    inputs = _inputs(options)
    exported = _exported(options)
    project = None
    if options.to == "packed":
        exported.save(options.output)
    else:
        if inputs is None:
            raise ValueError(f"--to {options.to} needs to know what the network is given: pass --inputs or --shape")
        form = {"form": options.form} if options.to == "onnx" else {}
        project = getattr(export, f"to_{options.to}")(exported, options.output, inputs, **form)
    size, before = _bytes(options.output), exported.float32_bytes
    print(f"{options.output}: {size:,} bytes, {before / size:.2f} times smaller than the {before:,} of float32")
    if project is not None and shutil.which("g++") is None:
        print("not compared: hls4ml's C simulation needs g++")
    elif inputs is not None:
        against: Any = options.output
        if options.to != "packed":
            against = export.runner(options.output) if project is None else simulation(project, exported)
        print(export.verify(exported, inputs, against))
    else:
        _check_words(exported, options.output)
        print("all words, formats and tensors are equal when read again; --inputs or --shape compare outputs too")


def _is_packed(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _exported(options: argparse.Namespace) -> Exported:
    if options.model is None:
        raise ValueError("--model is needed: a checkpoint holds no architecture")
    model = make_model(options.model, "--model")
    if _is_packed(options.checkpoint):
        return export.load(options.checkpoint, model)
    return export.capture(options.checkpoint, model)


def _inputs(options: argparse.Namespace) -> torch.Tensor | None:
    if options.inputs is not None:
        return torch.from_numpy(np.load(options.inputs, allow_pickle=False))
    if options.shape is None:
        return None
    try:
        shape = [int(size) for size in options.shape.split(",")]
        return torch.randn(shape, generator=torch.Generator().manual_seed(0))
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"--shape must be whole numbers such as 64,3,32,32, got {options.shape!r}") from error


def _check_words(exported: Exported, path: Path) -> None:
    """Read a packed file again and compare all that it holds.

    Raises:
        ValueError: something differs.
    """
    read = packed.read(path)
    for ours, theirs in ((exported.words, read.words), (exported.tensors, read.tensors)):
        for name, tensor in ours.items():
            if not torch.equal(tensor, theirs[name]):
                raise ValueError(f"{path} holds other values of {name} than were written: try again on another disk")
    if read.formats != exported.formats:
        raise ValueError(f"{path} holds other formats than were written: try again on another disk")


def _bytes(path: Path) -> int:
    """The size of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
