"""Processes of their own that need not import torch: forks of a server that has imported it once."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.reliability.ranks", "tests.reliability.runs"])

# Numba takes longer to import than these processes run; the back ends give the same bits.
ENVIRONMENT = {"ADAPT_BACKEND": "torch", "OMP_NUM_THREADS": "1"}


def started(function, *arguments):
    """Call a module's function in a process that can be killed; return the process."""
    process = CONTEXT.Process(target=_call, args=(function, *arguments), daemon=True)
    process.start()
    return process


def together(size, function, *arguments):
    """Call function(rank, size, *arguments) in so many processes at once; return what each rank returned."""
    with ProcessPoolExecutor(size, CONTEXT) as pool:
        calls = [pool.submit(_call, function, rank, size, *arguments) for rank in range(size)]
        return [call.result(timeout=280) for call in calls]


def _call(function, *arguments):
    os.environ.update(ENVIRONMENT)
    return function(*arguments)
