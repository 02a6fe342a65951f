"""What the commands share: the network that an argument names, and tables of text."""

import importlib
import os
import sys
from collections.abc import Sequence

from torch import nn


def make_model(place: str, argument: str) -> nn.Module:
    """Import and call a function without arguments, named as MODULE:FUNCTION, and return its network.

    Args:
        place: the function, such as mypackage.models:resnet20.
        argument: the user's name for this argument, for the messages.

    Raises:
        ValueError, ImportError, TypeError: there is no such function, or it returns something else.
    """
    name, _, function = place.partition(":")
    if not name or not function:
        raise ValueError(f"{argument} must be MODULE:FUNCTION, got {place!r}")
    # Like `python -m`, allow imports from the current folder.
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, "")
    make = getattr(importlib.import_module(name), function, None)
    if not callable(make):
        raise ValueError(f"{argument} {place}: {name} has no function {function}")
    model = make()
    if not isinstance(model, nn.Module):
        raise TypeError(f"{argument} {place} made a {type(model).__name__}, not a torch.nn.Module")
    return model


def aligned(rows: Sequence[Sequence[str]], *, left: int | None = None, gap: str = "  ") -> list[str]:
    """Return a table as one line of text for each row.

    Args:
        rows: rows with the same number of cells.
        left: this many first columns are aligned to the left, the others to the right; None for all to the left.
        gap: the text between two columns.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        gap.join(
            cell.ljust(width) if left is None or i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
