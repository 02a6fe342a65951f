"""Warnings that point at the user's own line, however deep in the call stack they are raised."""

import sys
import warnings

_BETWEEN = {"adapt", "torch", "lightning", "pytorch_lightning", "contextlib"}


def warn(message: str) -> None:
    """Warn, attributing the warning to the nearest caller outside this package, torch and Lightning."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _BETWEEN:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
