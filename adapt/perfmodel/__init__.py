"""What a run costs on fixed-point hardware, by the papers' analytical models.

Everything but `operations` and `activation_sizes` is arithmetic on arrays [rows, layers] of a trace.
"""

from adapt.perfmodel.operations import operations
from adapt.perfmodel.ratios import inference_speedup, memory_ratio, size_ratio
from adapt.perfmodel.summary import RunningSummary, Summary, TraceLike
from adapt.perfmodel.training import (
    OtherRun,
    push_down_operations,
    push_up_operations,
    switching_cost,
    training_cost,
    training_speedup,
)

__all__ = [
    "OtherRun",
    "RunningSummary",
    "Summary",
    "TraceLike",
    "inference_speedup",
    "memory_ratio",
    "operations",
    "push_down_operations",
    "push_up_operations",
    "size_ratio",
    "switching_cost",
    "training_cost",
    "training_speedup",
]
