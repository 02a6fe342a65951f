"""Adaptive precision against the same bits for every layer, from a converged start: `python -m recipes.same_bits`."""

import argparse
import dataclasses
import json
import platform
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import torch

import adapt
from recipes.common import data, ledger
from recipes.same_bits.start import published
from recipes.same_bits.tuning import Settings, tune


def run(arguments: argparse.Namespace) -> None:
    """Make the runs of the plan that have no line yet."""
    splits = None
    options = dict(option.split("=", 1) for option in arguments.option)
    options = {name: json.loads(value) for name, value in options.items()}
    for seed in arguments.seeds:
        for entry in arguments.plan:
            method, _, bits = entry.partition(":")
            settings = Settings(
                method,
                int(bits) if bits else None,
                options if method == "compact" else {},
                seed=seed,
                epochs=arguments.epochs,
                execution=arguments.execution,
            )
            identity: dict[str, Any] = {"settings": dataclasses.asdict(settings), "label": arguments.label}
            if ledger.is_finished(ledger.read(arguments.out), identity):
                continue
            if splits is None:
                splits = data.load("cifar10", arguments.data, download=False)
            begin = time.process_time()
            checkpoint = arguments.out.with_suffix(f".{ledger.digest(identity)}.pt")
            figures = tune(settings, published(arguments.start), splits, checkpoint)
            line = {**identity, **figures, "processor_seconds": round(time.process_time() - begin, 1)}
            line |= {"command": shlex.join(["python", "-m", "recipes.same_bits", *sys.argv[1:]])}
            line |= {"start": arguments.start.name, "adapt": adapt.__version__, "torch": torch.__version__}
            line |= {"machine": platform.machine(), "threads": torch.get_num_threads()}
            ledger.append(arguments.out, line)
            print(arguments.label, entry, seed, {k: figures[k] for k in ("accuracy", "bits")}, flush=True)


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m recipes.same_bits", description=__doc__)
    parser.add_argument("plan", nargs="+", help="METHOD or METHOD:BITS, such as float32, block:4, compact:4")
    parser.add_argument("--start", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--execution", choices=["bfloat16"], default=None)
    parser.add_argument("--option", action="append", default=[], help="NAME=JSON, of compact's policy")
    parser.add_argument("--label", default="")
    run(parser.parse_args())


if __name__ == "__main__":
    main()
