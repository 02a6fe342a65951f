"""Find out which calls are still running: a call that an exception interrupts, such as Ctrl-C, gives no notice."""

import sys
from types import FrameType


def caller() -> FrameType:
    """Return the frame that called the current function, skipping frames of torch's compiler."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("torch._dynamo"):
        frame = frame.f_back
    return frame


def is_running(frame: FrameType) -> bool:
    """Return whether this call is still running in the present thread."""
    other: FrameType | None = sys._getframe(1)
    while other is not None and other is not frame:
        other = other.f_back
    return other is frame
