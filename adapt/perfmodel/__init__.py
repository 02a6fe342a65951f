"""The cost of a run on fixed-point hardware, by the analytical models of the papers.

Everything but `operations` and `activation_sizes` is arithmetic on arrays [rows, layers] of a trace. Of the types in
the signatures, `ArrayLike` is a number, a nested sequence or an array; `Array` is a float64 NumPy array; `Operations`
are multiply-adds per sample [layers] in the order of the trace's columns, or a mapping from layer names to them.
"""

from adapt.perfmodel.activations import activation_sizes
from adapt.perfmodel.footprint import memory_footprint, network_size
from adapt.perfmodel.hardware import (
    A100,
    T4,
    HardwareProfile,
    profiled_inference_speedup,
    profiled_training_speedup,
)
from adapt.perfmodel.multiplication import (
    convolution_cost,
    dense_cost,
    multiplication_cost,
    network_cost,
    weight_memory,
)
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
    "A100",
    "T4",
    "HardwareProfile",
    "OtherRun",
    "RunningSummary",
    "Summary",
    "TraceLike",
    "activation_sizes",
    "convolution_cost",
    "dense_cost",
    "inference_speedup",
    "memory_footprint",
    "memory_ratio",
    "multiplication_cost",
    "network_cost",
    "network_size",
    "operations",
    "profiled_inference_speedup",
    "profiled_training_speedup",
    "push_down_operations",
    "push_up_operations",
    "size_ratio",
    "switching_cost",
    "training_cost",
    "training_speedup",
    "weight_memory",
]
