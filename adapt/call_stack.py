"""The calls that are running: a call that an exception interrupts, such as Ctrl-C, gives no other notice."""

import sys
from collections.abc import Iterator
from types import FrameType


def callers() -> Iterator[FrameType]:
    """Yield the frames of the calls within which the caller runs, innermost first."""
    frame = sys._getframe(1).f_back
    while frame is not None:
        yield frame
        frame = frame.f_back


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
