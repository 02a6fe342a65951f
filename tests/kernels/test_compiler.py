"""How the CPU's kernels are compiled."""

import numba
import numpy as np
import pytest
from numba.core.codegen import get_host_cpu_features

from adapt.kernels.numba_.compiler import floats


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
