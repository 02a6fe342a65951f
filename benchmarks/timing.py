"""Times of several variants, taken in turns, and their ratios."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

Clock = Callable[[], float]
Times = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Ratio:
    """How many times as long as the baseline something takes.

    Attributes:
        value: ratio of the medians.
        lower, upper: quartiles of the ratios of neighbouring rounds.
    """

    value: float
    lower: float
    upper: float

    def scaled(self, factor: float) -> "Ratio":
        """The same measurement in another unit."""
        return Ratio(self.value * factor, self.lower * factor, self.upper * factor)


def clock_for(device: torch.device, threads: int) -> tuple[str, Clock]:
    """The name of the clock that suits the device, and the clock, in seconds.

    With one thread it is processor time, which other load on the machine affects least; with several threads it is the
    wall clock, because threads wait for each other; on CUDA it is the wall clock after synchronisation.
    """
    if device.type == "cuda":

        def finished() -> float:
            torch.cuda.synchronize(device)
            return time.perf_counter()

        return "wall clock after synchronisation", finished
    return ("processor time", time.process_time) if threads == 1 else ("wall clock", time.perf_counter)


def interleave(variants: Mapping[str, Callable[[], object]], *, rounds: int, clock: Clock) -> Times:
    """Seconds of each variant in each round, {name: [rounds]}. A round runs every variant once, in order."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, variant in variants.items():
            start = clock()
            variant()
            times[name].append(clock() - start)
    return {name: np.array(taken) for name, taken in times.items()}


def ratio(times: Mapping[str, NDArray[np.float64]], name: str, baseline: str, *, window: int = 1) -> Ratio:
    """Time of one variant / time of another.

    Args:
        times: returned by `interleave`.
        name, baseline: the two variants.
        window: number of neighbouring rounds that count as one, for costs that occur only in some rounds.

    Raises:
        ValueError: there are fewer rounds than a window needs.
    """
    rounds = len(times[name]) // window * window
    if rounds == 0:
        raise ValueError(f"window must be at most the {len(times[name])} rounds that were run, got {window}")
    taken, base = (times[key][:rounds].reshape(-1, window).sum(axis=1) for key in (name, baseline))
    lower, upper = np.quantile(taken / base, [0.25, 0.75])
    return Ratio(float(np.median(taken) / np.median(base)), float(lower), float(upper))


def calls_for(function: Callable[[], object], *, seconds: float, clock: Clock) -> int:
    """How many consecutive calls of a function take about this many seconds; at least one."""
    function()
    start = clock()
    function()
    taken = max(clock() - start, 1e-7)
    return max(round(seconds / taken), 1)


def repeated(function: Callable[[], object], calls: int) -> Callable[[], None]:
    """A function that calls another one this many times."""

    def run() -> None:
        for _ in range(calls):
            function()

    return run
