"""The columns of every trace, from which everything else follows: `Trace.append`, the file, the loggers."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from adapt.numerics import HIGHEST_FRACTION, LONGEST_WORD, LOWEST_FRACTION
from adapt.trace.columns import Column


class StandardColumns:
    """The columns of every trace, as attributes of the trace."""

    word_length = Column(np.int16, 1, LONGEST_WORD, float32=32, doc="WL, bits")
    fraction_length = Column(
        np.int16,
        LOWEST_FRACTION,
        HIGHEST_FRACTION,
        float32=0,
        doc="FL, bits; 0 where the layer runs in float32; the smallest where every channel has its own",
    )
    nonzero = Column(np.float32, 0, 1, float32=1, doc="Share of the quantised weights that are not zero, 0 to 1")
    lookback = Column(
        np.float32, 0, 2**31, float32=0, default=0, doc="Gradients in a full window (not yet rounded up); 0 without one"
    )
    resolution = Column(np.int32, 0, 2**31 - 1, float32=0, default=0, doc="Histogram bins; 0 without a histogram")
    diversity = Column(
        np.float32,
        0,
        math.inf,
        float32=math.inf,
        default=math.inf,
        doc="AdaPT eq. 3, Δs of the current window; ∞ where the window has no direction",
    )
    divergence = Column(
        np.float32,
        -1e-6,  # a sum of many logarithms may end a rounding error below zero
        1e9,
        float32=math.nan,
        default=math.nan,
        nan=True,
        doc="AdaPT eq. 1, bits, at the layer's last switch; NaN before its first one",
    )
    strategy = Column(
        np.int8, 0, 3, float32=0, default=0, doc="AdaPT's push-up strategy: 1 min, 2 mean, 3 max; 0 without"
    )
    rounding_cost = Column(
        np.float32,
        -math.inf,
        math.inf,
        float32=math.nan,
        default=math.nan,
        nan=True,
        doc="By how much rounding the layer raised the loss in its last window, to first order; NaN if not measured",
    )


STANDARD_COLUMNS: Mapping[str, Column[Any]] = {
    name: column for name, column in vars(StandardColumns).items() if isinstance(column, Column)
}
