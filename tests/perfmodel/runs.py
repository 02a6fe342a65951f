"""Random runs for property tests: everything that a trace tells the performance model, and operations."""

from types import SimpleNamespace

import numpy as np
from hypothesis import strategies as st

_WORD_LENGTHS, _NONZEROS = st.integers(2, 32), st.floats(0.01, 1)


@st.composite
def runs(draw, word_lengths=_WORD_LENGTHS, nonzeros=_NONZEROS):
    """One to six layers, one to five rows."""
    layers, rows = draw(st.integers(1, 6)), draw(st.integers(1, 5))

    def table(values):
        row = st.lists(values, min_size=layers, max_size=layers)
        return np.array(draw(st.lists(row, min_size=rows, max_size=rows)))

    return SimpleNamespace(
        layers=tuple(f"layer{index}.weight" for index in range(layers)),
        numel=np.array(draw(st.lists(st.integers(1, 10**6), min_size=layers, max_size=layers))),
        operations=np.array(draw(st.lists(st.integers(1, 10**9), min_size=layers, max_size=layers))),
        step=np.arange(1, rows + 1),
        word_length=table(word_lengths),
        nonzero=table(nonzeros),
        lookback=table(st.one_of(st.just(0.0), st.floats(25, 100))),
        resolution=table(st.integers(50, 150)),
    )
