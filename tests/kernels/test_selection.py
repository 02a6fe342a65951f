"""Which back end runs where, and what happens when it cannot."""

import os

import pytest
import torch

from adapt.kernels.numba_ import weights as numba_
from adapt.kernels.torch_ import weights as torch_
from adapt.rounding import backend, set_backend
from tests.processes import python


@pytest.fixture(autouse=True)
def _no_choice_left_behind(monkeypatch):
    monkeypatch.delenv("ADAPT_BACKEND", raising=False)
    yield
    set_backend(None)


def test_the_device_chooses():
    assert backend("cpu") is numba_
    assert backend(torch.device("meta")) is torch_


def test_a_name_forces(monkeypatch):
    set_backend("torch")
    assert backend("cpu") is torch_
    set_backend(None)
    assert backend("cpu") is numba_
    monkeypatch.setenv("ADAPT_BACKEND", "torch")
    assert backend("cpu") is torch_
    set_backend("numba")
    assert backend("cpu") is numba_, "the call outranks the environment"


def test_an_unknown_name_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="name must be one of torch, numba, triton, got 'cuda'"):
        set_backend("cuda")
    monkeypatch.setenv("ADAPT_BACKEND", "fast")
    with pytest.raises(ValueError, match=r"ADAPT_BACKEND must be one of .*'fast'"):
        backend("cpu")


def test_a_forced_back_end_that_cannot_work_says_so():
    set_backend("numba")
    with pytest.raises(RuntimeError, match=r"numba back end was forced but cannot work on meta.*set_backend\(None\)"):
        backend("meta")


def run(code, **environment):
    result = python("-c", code, environment={**os.environ, **environment})
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_importing_rounding_imports_no_compiler():
    code = "import sys, adapt.rounding; print(sorted({'numba', 'llvmlite', 'triton', 'lightning'} & set(sys.modules)))"
    assert run(code) == "[]"


QUANTIZE = """
import torch, adapt.rounding as r
from adapt import Precision
print(r.quantize(torch.tensor([0.3, 9.0]), Precision(8, 4)).tolist(), r.backend('cpu').__name__)
"""


WITHOUT_NUMBA = """
import sys
sys.modules["adapt.kernels.numba_.weights"] = None
"""


def test_without_numba_torch_takes_over():
    assert run(WITHOUT_NUMBA + QUANTIZE) == "[0.3125, 7.9375] adapt.kernels.torch_.weights"
    forced = "\ntry:\n    r.set_backend('numba')\nexcept RuntimeError as error:\n    print(error)"
    message = run(WITHOUT_NUMBA + "import adapt.rounding as r" + forced)
    assert message.startswith("the numba back end cannot be imported")
    assert "install numba" in message


def test_a_disabled_compiler_means_torch():
    assert run(QUANTIZE, NUMBA_DISABLE_JIT="1") == "[0.3125, 7.9375] adapt.kernels.torch_.weights"


UNWRITABLE = """
from numba.core.dispatcher import Dispatcher
def enable_caching(self):
    raise RuntimeError("cannot cache function: no locator available")
Dispatcher.enable_caching = enable_caching
"""


def test_no_folder_to_write_the_cache_to_means_compiling_again():
    """For example where the package and the home folder are read-only."""
    assert run(UNWRITABLE + QUANTIZE) == "[0.3125, 7.9375] adapt.kernels.numba_.weights"


FORK = """
import os, signal, torch
from adapt import Precision
from adapt.rounding import quantize, set_backend
set_backend("numba")
torch.set_num_threads(2)
x = torch.randn(2**21)
expected = quantize(x, Precision(8, 4))
child = os.fork()
if child == 0:
    signal.alarm(60)
    os._exit(0 if torch.equal(quantize(x, Precision(8, 4)), expected) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform cannot fork")
def test_a_forked_process_gets_threads_of_its_own():
    assert run(FORK) == "0"
