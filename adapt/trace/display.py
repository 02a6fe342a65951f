"""What loggers and pictures show of a trace: totals of the network, columns of the layers, and some of its rows."""

import numpy as np
from numpy.typing import NDArray

from adapt.numerics import LONGEST_WORD
from adapt.trace.trace import Trace
from adapt.trace.widths import Widths


def totals(trace: Trace, widths: Widths | None = None) -> dict[str, NDArray[np.float64]]:
    """Return the figures that loggers show under `adapt/`, with layers weighted by their number of weights.

    Args:
        trace: the trace.
        widths: for learned widths, the word lengths by channel, which the trace rounds to whole bits.

    Returns:
        By name, each float64 [rows]: mean_word_length, in bits; nonzero, a share of the weights; size_ratio, AdaPT
        4.1.2, SZ; memory_ratio, MEM, the mean over the rows so far.
    """
    share = trace.numel / trace.numel.sum()
    lengths, nonzero = word_lengths(trace, widths), trace.nonzero.astype(np.float64)
    size = (nonzero * lengths) @ share / LONGEST_WORD
    return {
        "mean_word_length": lengths @ share,
        "nonzero": nonzero @ share,
        "size_ratio": size,
        "memory_ratio": 1 + np.cumsum(size) / np.arange(1, len(size) + 1),
    }


def word_lengths(trace: Trace, widths: Widths | None = None) -> NDArray[np.float64]:
    """Return each layer's word length, float64 [rows, layers]; for learned widths, the exact mean over the channels."""
    lengths = trace.word_length.astype(np.float64)
    if widths is not None and len(widths):
        exact = dict(zip(widths.names, widths.means_at(trace.step).T, strict=True))
        for layer, name in enumerate(trace.layers):
            lengths[:, layer] = exact.get(name, lengths[:, layer])
    return lengths


def shown_columns(trace: Trace, *, internals: bool = False) -> tuple[str, ...]:
    """Return the columns that loggers show for each layer: formats, non-zeros, and the policy's own columns.

    Args:
        trace: the trace.
        internals: whether to return all columns, including those on which AdaPT's decisions rest.
    """
    others = trace.columns if internals else trace.own_columns
    return tuple(dict.fromkeys(("word_length", "fraction_length", "nonzero", *others)))


def thinned(first: int, rows: int, points: int) -> NDArray[np.int64]:
    """Return the indices of at most `points` + 1 of the rows first…rows − 1: evenly spaced rows, and the last one.

    The spacing depends only on `rows`, so a growing trace is thinned more and more coarsely, but never shifted.
    """
    spacing = max(1, -(-rows // points))
    chosen = np.arange(-(-first // spacing) * spacing, rows, spacing)
    return chosen if rows <= first or (len(chosen) and chosen[-1] == rows - 1) else np.append(chosen, rows - 1)
