"""Weights that are hard to bin: ties, grid values, tails, clusters and extreme scales."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp


def tensors(max_size, exponents=(-20, 20)):
    """float32 arrays [n], n ≥ 1, of one of several shapes of distribution times a power of two."""
    size = st.integers(1, max_size)
    halves = hnp.arrays(np.float32, size, elements=st.integers(-64, 64).map(lambda k: k / 2))
    plain = hnp.arrays(np.float32, size, elements=st.floats(-1, 1, width=32, allow_subnormal=False))
    normal = st.builds(
        lambda seed, n: np.random.default_rng(seed).standard_normal(n).astype(np.float32), st.integers(0, 2**32), size
    )
    one_tail = st.builds(lambda w, tail: np.append(w, np.float32(tail)), normal, st.floats(-100, 100, width=32))
    cluster = st.builds(lambda w: np.float32(1) + w * np.float32(2**-20), normal)
    return st.builds(
        lambda w, exponent: np.ldexp(w, exponent).astype(np.float32),
        st.one_of(halves, plain, normal, one_tail, cluster),
        st.integers(*exponents),
    )
