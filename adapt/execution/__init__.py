"""Execution of layers' products in a short floating-point type."""

from adapt.execution.execution import EXECUTIONS, Execution, fits_into

__all__ = ["EXECUTIONS", "Execution", "fits_into"]
