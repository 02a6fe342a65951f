"""The history of every layer's precision, step by step, and its file format."""

from adapt.trace.columns import Column
from adapt.trace.trace import Trace

__all__ = ["Column", "Trace"]
