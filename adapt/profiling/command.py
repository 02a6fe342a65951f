"""`adapt profile`: a network's model card, and a hardware profile of this processor."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adapt.command_line import make_model
from adapt.perfmodel import (
    HardwareProfile,
    Layer,
    machines,
    model_card,
    network_layers,
    profiled_training_speedup,
    training_speedup,
)
from adapt.perfmodel.checked_arrays import FLOAT32_BITS
from adapt.perfmodel.inputs import samples_of
from adapt.profiling.calibration import as_toml, measure_processor
from adapt.profiling.html import as_html
from adapt.profiling.text import as_json, as_text
from adapt.trace import Trace

Figures = Callable[[Path], tuple[Trace, list[dict[str, Any]]]]
"""Reads a run: its trace, and a row for every layer with layer, word_length_last and nonzero_last."""

_WRITERS = {"text": as_text, "json": as_json, "html": as_html}


def add_profile(commands: Any, figures: Figures) -> None:
    """Add `adapt profile` to a parser's commands."""
    command = commands.add_parser(
        "profile",
        help="model what a network costs on a machine, layer by layer",
        description="Print a network's model card: every layer's multiply-adds, sizes, widths and share of the cost, "
        "and what the whole gains on a machine, idealised, profiled and bounded by memory. Nothing is measured, "
        "except the machine with --measure.",
    )
    command.add_argument(
        "model",
        nargs="?",
        metavar="MODULE:FUNCTION",
        help="a function without arguments that makes the network, such as mypackage.models:resnet20; this imports and "
        "runs it",
    )
    command.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="N,…",
        help="shape of what the network is given, such as 1,3,32,32, or 1,64:int for whole numbers; once for each "
        "argument of its forward",
    )
    widths = command.add_mutually_exclusive_group()
    widths.add_argument("--trace", type=Path, metavar="RUN", help="take the widths from a trace, or from its folder")
    widths.add_argument("--bits", type=float, default=8, metavar="B", help="or give all weights this many (default: 8)")
    command.add_argument(
        "--activation-bits", type=float, metavar="B", help="bits of the activations (default: as many as the weights)"
    )
    command.add_argument(
        "--hardware",
        default="a100",
        metavar="NAME",
        help=f"the machine: a TOML file, or one of {', '.join(machines())} (default: a100)",
    )
    command.add_argument(
        "--measure", action="store_true", help="measure this processor, which takes a minute, and use it as the machine"
    )
    command.add_argument(
        "-o", "--output", type=Path, default=Path("cpu.toml"), help="where --measure writes to (default: cpu.toml)"
    )
    command.add_argument("--format", choices=list(_WRITERS), default="text", help="how to print it (default: text)")
    command.set_defaults(act=lambda options: run_profile(options, figures))


def run_profile(options: argparse.Namespace, figures: Figures) -> None:
    """Run `adapt profile` with these options.

    Raises:
        OSError, ValueError, TypeError, ImportError: an argument is invalid, or a file cannot be read or written.
    """
    if options.model is None and not options.measure:
        raise ValueError("name a network as MODULE:FUNCTION, or measure this processor with --measure")
    if options.model is not None and not options.input:
        raise ValueError("--input is needed: give the shape of a batch, such as 1,3,32,32")
    inputs = [_input(text) for text in options.input]
    network = None if options.model is None else make_model(options.model, "the network")
    if options.measure:
        machine = measure_processor(progress=lambda text: print(text, file=sys.stderr))
        options.output.write_text(as_toml(machine), encoding="utf-8")
        print(f"{options.output}: {machine.name}", file=sys.stderr)
    else:
        machine = HardwareProfile.load(options.hardware)
    if network is None:
        return
    layers = _layers(network, inputs)
    bits: list[float] = [options.bits] * len(layers)
    nonzero, training = [1.0] * len(layers), None
    if options.trace is not None:
        trace, rows = figures(options.trace)
        found = _by_layer(rows, layers, options.trace)
        bits = [found[layer.name]["word_length_last"] if layer.name in found else FLOAT32_BITS for layer in layers]
        nonzero = [found[layer.name]["nonzero_last"] if layer.name in found else 1.0 for layer in layers]
        training = _training(trace, layers, machine)
    card = model_card(
        layers,
        machine,
        bits,
        options.activation_bits,
        nonzero=nonzero,
        batch_size=samples_of(tuple(inputs), None),
        other_parameters=sum(parameter.numel() for parameter in network.parameters() if parameter.ndim < 2),
    )
    print(_WRITERS[options.format]({"network": options.model, **card, "training": training}))


def _input(text: str) -> Tensor:
    shape, _, kind = text.partition(":")
    try:
        sides = [int(side) for side in shape.split(",")]
        if kind not in ("", "int") or min(sides) < 1:
            raise ValueError
    except ValueError:
        raise ValueError(f"--input must be whole numbers such as 1,3,32,32 or 1,64:int, got {text!r}") from None
    return torch.zeros(sides, dtype=torch.int64 if kind else torch.float32)


def _layers(network: nn.Module, inputs: list[Tensor]) -> tuple[Layer, ...]:
    try:
        return network_layers(network, *inputs)
    except RuntimeError as error:
        raise ValueError(f"--input does not fit the network: {error}") from error


def _by_layer(rows: list[dict[str, Any]], layers: tuple[Layer, ...], run: Path) -> dict[str, dict[str, Any]]:
    names = {layer.name for layer in layers}
    for row in rows:
        if row["layer"] not in names:
            known = ", ".join([layer.name for layer in layers][:5])
            raise ValueError(f"{run} has the layer {row['layer']}, which the network lacks; it has {known}")
    return {row["layer"]: row for row in rows}


def _training(trace: Trace, layers: tuple[Layer, ...], machine: HardwareProfile) -> dict[str, float] | None:
    """Return the speedups of the run so far, without the overhead of switching; None on a machine without float32."""
    if machine.float_bits < FLOAT32_BITS:
        return None
    work = {layer.name: layer.multiply_adds for layer in layers}
    counts = [work[name] for name in trace.layers]
    return {
        "idealised_speedup": training_speedup(counts, trace.word_length, trace.nonzero, batch_size=1),
        "profiled_speedup": profiled_training_speedup(counts, trace.word_length, machine),
    }
