"""Processes of their own that need not import torch: forks of one that has imported it once."""

import atexit
import functools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent

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


LIGHTNING = ("torch", "numba", "lightning.pytorch")


def python(*arguments, folder=ROOT, environment=None, imported=("torch",)):
    """Do what `python *arguments` does, in a fork of a Python that has imported some modules; return the outcome.

    The program still has to import them, which then takes no time. It starts as a new process does otherwise: none of
    the modules is adapt, or imports it.
    """
    environment = dict(os.environ if environment is None else environment)
    environment.setdefault("PYTHONPATH", str(ROOT))
    arguments = [str(argument) for argument in arguments]
    if not hasattr(os, "fork"):
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8")
    with tempfile.TemporaryDirectory() as files:
        output, error = Path(files, "output"), Path(files, "error")
        output.touch()
        error.touch()
        request = {"arguments": arguments, "folder": str(folder), "environment": environment}
        status = _warm(imported).run({**request, "output": str(output), "error": str(error)})
        shown = [path.read_text(encoding="utf-8") for path in (output, error)]
    return subprocess.CompletedProcess(arguments, status, *shown)


class _Warm:
    """The Python of `tests.warm`, which is started when it is first needed and ends with this process."""

    def __init__(self, modules):
        command = [sys.executable, "-m", "tests.warm", *modules]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True, start_new_session=True, bufsize=1
        )
        atexit.register(self.end)

    def run(self, request):
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            return int(self.process.stdout.readline())
        except BaseException:  # such as a time limit: the program may run on
            os.killpg(self.process.pid, signal.SIGKILL)
            _warm.cache_clear()
            raise

    def end(self):
        self.process.stdin.close()
        self.process.wait()


@functools.cache
def _warm(modules):
    return _Warm(modules)
