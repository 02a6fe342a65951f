"""What happened to every layer's precision, step by step, and the file that keeps it."""

from adapt.trace.columns import Column
from adapt.trace.trace import Trace

__all__ = ["Column", "Trace"]
