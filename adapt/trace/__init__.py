"""What happened to every layer's precision, step by step, and the file that keeps it."""

from adapt.trace.trace import Trace

__all__ = ["Trace"]
