"""Time calls on one core of a machine that others use too."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray


def fastest(calls: Sequence[Callable[[], object]], *, rounds: int = 8, seconds: float = 2e-3) -> NDArray[np.float64]:
    """Return the seconds of each call in its fastest round.

    The calls take turns. In each round a call is repeated for `seconds`, after one call that only fills the caches. The
    clock is the process's own processor time, which excludes other programs on the core. Their effect on the caches
    remains, which is why the fastest round counts.
    """
    repeats = [_repeats(call, seconds) for call in calls]
    best = np.full(len(calls), np.inf)
    for _ in range(rounds):
        for i, (call, count) in enumerate(zip(calls, repeats, strict=True)):
            call()
            start = time.process_time()
            for _ in range(count):
                call()
            best[i] = min(best[i], (time.process_time() - start) / count)
    return best


@contextmanager
def one_core() -> Iterator[None]:
    """Run in one thread, pinned to the last core that the process may use."""
    threads = torch.get_num_threads()
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    torch.set_num_threads(1)
    if cores:
        os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if cores:
            os.sched_setaffinity(0, cores)


def _repeats(call: Callable[[], object], seconds: float) -> int:
    """Return how many calls take about this long; the first call, which may compile or allocate, does not count."""
    call()
    start = time.process_time()
    call()
    return max(round(seconds / max(time.process_time() - start, 1e-6)), 1)
