"""The passes for CUDA, written in Triton."""

import triton

OLDEST = (3, 6)
"""The oldest version of Triton with which the kernels were compiled and tested; torch 2.10 includes it."""

if tuple(map(int, triton.__version__.split(".")[:2])) < OLDEST:
    raise ImportError(f"triton {triton.__version__} is older than {OLDEST[0]}.{OLDEST[1]}")
