"""The selection of rows that are shown of a long trace."""

import numpy as np
from numpy.typing import NDArray


def thinned(first: int, rows: int, points: int) -> NDArray[np.int64]:
    """Return the indices of at most `points` + 1 of the rows first…rows − 1: evenly spaced rows, and the last one.

    The spacing depends only on `rows`, so a growing trace is thinned more and more coarsely, but never shifted.
    """
    spacing = max(1, -(-rows // points))
    chosen = np.arange(-(-first // spacing) * spacing, rows, spacing)
    return chosen if rows <= first or (len(chosen) and chosen[-1] == rows - 1) else np.append(chosen, rows - 1)
