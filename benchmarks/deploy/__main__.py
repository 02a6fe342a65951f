"""Bytes and latency of exported networks, beside float32 and ONNX Runtime's own quantisation.

    python -m benchmarks.deploy

Variants of a network are timed in turns within one process (A B A B …), in one pinned thread; figures are medians over
the rounds, in milliseconds per batch. Weights come from a few steps of training, as latency does not depend on them.
"""

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.__main__ import RESULTS, pin
from benchmarks.allocator import keep_freed_memory
from benchmarks.deploy.artefacts import Artefact, artefacts, networks
from benchmarks.machine import describe, slug
from benchmarks.timing import calls_for, clock_for, interleave, repeated


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.deploy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", choices=list(networks()), default=list(networks()))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32, 256])
    parser.add_argument("--variants", nargs="+", help='those to time besides "float32 ORT" (default: all)')
    parser.add_argument("--rounds", type=int, default=21, help="how often each variant is timed (default 21)")
    parser.add_argument("--seconds", type=float, default=0.05, help="length of one timing, at least one call")
    parser.add_argument("--out", type=Path, help=f"result file; default: deploy-MACHINE.json in {RESULTS}")
    return parser.parse_args(arguments)


def measure(
    name: str, batches: list[int], rounds: int, seconds: float, chosen: list[str] | None
) -> dict[str, dict[str, Any]]:
    """Bytes, share of equal outputs and milliseconds by batch of every variant of a network, or of the chosen ones."""
    make_batch = networks()[name][1]
    _, clock = clock_for(torch.device("cpu"), 1)
    with tempfile.TemporaryDirectory() as folder:
        variants: dict[str, Artefact] = {
            label: variant
            for label, variant in artefacts(name, Path(folder))
            if chosen is None or label in ("float32 ORT", *chosen)
        }
        rows: dict[str, dict[str, Any]] = {
            label: {"bytes": variant.size, "equal": variant.equal, "milliseconds": {}}
            for label, variant in variants.items()
        }
        for size in batches:
            x = make_batch(size)
            calls = {label: partial(variant.call, x) for label, variant in variants.items()}
            counts = {label: calls_for(call, seconds=seconds, clock=clock) for label, call in calls.items()}
            many = {label: repeated(call, counts[label]) for label, call in calls.items()}
            times = interleave(many, rounds=rounds, clock=clock)
            for label, taken in times.items():
                rows[label]["milliseconds"][str(size)] = float(np.median(taken)) / counts[label] * 1e3
    return rows


def as_markdown(results: dict[str, dict[str, dict[str, Any]]], batches: list[int]) -> str:
    """A table with a row for each variant of each network; times beside ONNX Runtime's float32 in brackets."""
    lines = ["| network | kB | equal outputs | " + " | ".join(f"ms at batch {size}" for size in batches) + " |"]
    lines.append("|---" * (3 + len(batches)) + "|")
    for name, rows in results.items():
        base = rows["float32 ORT"]["milliseconds"]
        for label, row in rows.items():
            size = "–" if row["bytes"] is None else f"{row['bytes'] / 1000:,.0f}"
            equal = "–" if row["equal"] is None else f"{row['equal']:.2%}"
            times = [row["milliseconds"][str(size)] for size in batches]
            shown = [f"{time:.3g} ({time / base[str(size)]:.2f})" for time, size in zip(times, batches, strict=True)]
            lines.append(f"| {name}, {label} | {size} | {equal} | {' | '.join(shown)} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table and write the JSON."""
    options = parse(arguments)
    pin(1)
    machine = describe(torch.device("cpu"), 1, memory_kept=keep_freed_memory())
    results = {}
    for name in options.networks:
        results[name] = measure(name, options.batches, options.rounds, options.seconds, options.variants)
        print(as_markdown({name: results[name]}, options.batches), flush=True)
    path = options.out or RESULTS / f"deploy-{slug(machine)}.json"
    content = {"machine": machine, "clock": clock_for(torch.device("cpu"), 1)[0], "networks": results}
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"\nWritten to {path}")


if __name__ == "__main__":
    main()
