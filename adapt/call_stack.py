"""Which calls are still under way: what an exception cuts short, Ctrl-C above all, tells nobody that it has ended."""

import sys
from types import FrameType


def caller() -> FrameType:
    """The frame of the function that called the one that asks; past those of torch's compiler."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("torch._dynamo"):
        frame = frame.f_back
    return frame


def is_running(frame: FrameType) -> bool:
    """Whether that call, of this thread, has not ended yet."""
    other: FrameType | None = sys._getframe(1)
    while other is not None and other is not frame:
        other = other.f_back
    return other is frame
