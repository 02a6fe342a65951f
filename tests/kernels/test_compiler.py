"""How the CPU's kernels are compiled."""

import os

import numba
import numpy as np
import pytest
from numba.core.codegen import get_host_cpu_features

from adapt.kernels.numba_.compiler import floats
from tests.processes import python


def double(address, numel):
    x = floats(address, numel)
    for i in range(numel):
        x[i] += x[i]


@pytest.mark.skipif("+avx512f" not in get_host_cpu_features(), reason="the processor has no 512-bit registers")
def test_loops_use_the_widest_registers_whatever_the_processor_is_said_to_prefer():
    function = numba.njit(double)
    x = np.arange(100, dtype=np.float32)
    function(x.ctypes.data, len(x))
    (assembly,) = function.inspect_asm().values()
    assert (x == 2 * np.arange(100)).all()
    assert "zmm" in assembly


class TestNotice:
    """The first compilation takes seconds, and says so."""

    CODE = "from adapt.kernels.numba_.compiler import prefetch; prefetch(0, 0); prefetch(0, 2)"

    def said(self, **environment):
        environment = {**os.environ, **environment}
        done = python("-c", self.CODE, environment=environment)
        assert done.returncode == 0
        return done.stderr.splitlines()

    def test_it_is_one_line_and_only_where_nothing_is_cached(self, tmp_path):
        (line,) = self.said(NUMBA_CACHE_DIR=str(tmp_path))
        assert line.startswith("adapt compiles its kernels for this processor (some ten seconds, once;")
        assert str(tmp_path) in line
        assert self.said(NUMBA_CACHE_DIR=str(tmp_path)) == []

    def test_functions_of_others_are_compiled_silently(self, tmp_path):
        code = "import adapt.kernels.numba_.compiler, numba; numba.njit(lambda x: x)(1)"
        done = python("-c", code)
        assert done.returncode == 0
        assert done.stderr == ""
