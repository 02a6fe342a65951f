"""What the sections of the benchmark share: the device, the clock, and how much to measure."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch

from benchmarks.networks import ALEXNET, MLP, RESNET, Network
from benchmarks.table import Row
from benchmarks.timing import Clock, Times, calls_for, interleave, repeated

LOOKBACK = 25
"""Gradients in AdaPT's shortest window, so the fewest steps between two switches of a layer."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        networks: the networks to train.
        elements: of the large tensor.
        batch: pictures in a batch.
        rounds: short rounds of the kernels.
        windows: sequences of 25 steps of AdaPT and the baseline.
        peer_rounds: steps of every other way of training.
    """

    networks: tuple[Network, ...] = (RESNET, ALEXNET, MLP)
    elements: int = 4_000_000
    batch: int = 128
    rounds: int = 100
    windows: int = 6
    peer_rounds: int = 8


@dataclass(frozen=True)
class Bench:
    """Device, clock and sizes of a benchmark."""

    device: torch.device
    clock: Clock
    sizes: Sizes


Section = Callable[[Bench], Iterator[Row]]
"""A part of the benchmark, which yields each row as soon as it is measured."""

CPU, CUDA = Sizes(), Sizes(elements=2**26, batch=512)


def runnable(variants: Mapping[str, object]) -> tuple[dict[str, Callable[[], object]], dict[str, str]]:
    """Split variants into those that can run, and the reasons why the others cannot."""
    missing = {name: reason for name, reason in variants.items() if isinstance(reason, str)}
    return {name: run for name, run in variants.items() if callable(run)}, missing


def many_calls(variants: dict[str, Callable[[], object]], bench: Bench, *, rounds: int | None = None) -> Times:
    """Seconds per call of each variant in each round; a round repeats short calls for about 2 ms."""
    calls = {name: calls_for(call, seconds=2e-3, clock=bench.clock) for name, call in variants.items()}
    many = {name: repeated(call, calls[name]) for name, call in variants.items()}
    times = interleave(many, rounds=rounds or bench.sizes.rounds, clock=bench.clock)
    return {name: taken / calls[name] for name, taken in times.items()}
