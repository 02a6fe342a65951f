"""A run: what it remembers between two steps, and in which order a step moves it."""

from adapt.run.run import Run

__all__ = ["Run"]
