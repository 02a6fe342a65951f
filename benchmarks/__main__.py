"""What adaptive precision costs on this machine: prints a table of ratios and writes them as JSON.

    python -m benchmarks

Variants are timed in turns within one process (A B A B …), over many short rounds. A row gives the ratio of the medians
and the quartiles of the ratios of neighbouring rounds. By default one pinned thread is used, for reproducibility, and
the process keeps the memory that it frees, for all variants alike (`allocator.py`). With CUDA, the same table and a few
more rows are measured on the GPU, with larger tensors and batches (--device cpu for the processor). That part has not
been run on a GPU yet; the files in `results/` name their machines.
"""

import argparse
import json
import os
from pathlib import Path

import torch

from benchmarks.allocator import keep_freed_memory
from benchmarks.bench import CPU, CUDA, Bench, Section, Sizes
from benchmarks.cuda import cuda
from benchmarks.execution import execution
from benchmarks.learned import learned
from benchmarks.machine import describe, slug
from benchmarks.memory import memory
from benchmarks.push_down import push_down
from benchmarks.quantiser import quantiser
from benchmarks.steps import steps
from benchmarks.table import Row, as_json, as_markdown
from benchmarks.timing import clock_for

SECTIONS: dict[str, Section] = {
    "quantiser": quantiser,
    "steps": steps,
    "push-down": push_down,
    "memory": memory,
    "execution": execution,
    "learned": learned,
    "cuda": cuda,
}
RESULTS = Path(__file__).parent / "results"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads, pinned to as many cores (default 1)")
    parser.add_argument("--machine", help="name of the result file; default: model of the GPU or processor")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result file")
    parser.add_argument(
        "--only", nargs="+", choices=list(SECTIONS), help="measure only these parts; nothing is written"
    )
    return parser.parse_args(arguments)


def pin(threads: int) -> None:
    """Use this many threads, and pin the process to as many of its cores, the last ones."""
    torch.set_num_threads(threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])


def measure(bench: Bench, sections: list[str]) -> list[Row]:
    """Measure some sections and return their rows, each printed as soon as it is measured."""
    rows = []
    for section in sections:
        for row in SECTIONS[section](bench):
            print(as_markdown([row]).splitlines()[2], flush=True)
            rows.append(row)
    return rows


def main(arguments: list[str] | None = None, sizes: Sizes | None = None) -> None:
    """Measure, print the table and write the JSON."""
    options = parse(arguments)
    if options.threads < 1:
        raise SystemExit(f"--threads must be at least 1, got {options.threads}")
    device = torch.device(options.device)
    pin(options.threads)
    name, clock = clock_for(device, options.threads)
    machine = describe(device, options.threads, memory_kept=keep_freed_memory())
    bench = Bench(device, clock, sizes or (CUDA if device.type == "cuda" else CPU))
    rows = measure(bench, options.only or list(SECTIONS))
    print(f"\n{machine['processor']}, {machine['device']}, {options.threads} threads, {name}\n\n{as_markdown(rows)}")
    if options.only is None:
        options.out.mkdir(parents=True, exist_ok=True)
        path = options.out / f"{options.machine or slug(machine)}.json"
        path.write_text(json.dumps(as_json(machine, name, rows), indent=1, ensure_ascii=False) + "\n")
        print(f"\nWritten to {path}")


if __name__ == "__main__":
    main()
