"""The cost of a run on fixed-point hardware, by the analytical models of the papers.

`operations`, `activation_sizes` and `network_layers` run a copy of the model once; everything else is arithmetic on a
trace's arrays [rows, layers]. In the signatures, `ArrayLike` is a number, a nested sequence or an array; `Array` is a
float64 NumPy array; `Operations` are multiply-adds per sample [layers] in the order of the trace's columns, or a
mapping from layer names to them.
"""

from adapt.perfmodel.activations import activation_sizes
from adapt.perfmodel.card import model_card
from adapt.perfmodel.footprint import memory_footprint, network_size
from adapt.perfmodel.hardware import A100, T4, HardwareProfile, LayerCost, machines
from adapt.perfmodel.layers import Layer, network_layers
from adapt.perfmodel.multiplication import multiplication_cost, multiply_add_energy, network_cost, weight_memory
from adapt.perfmodel.operations import operations
from adapt.perfmodel.profiled import layer_latency, profiled_inference_speedup, profiled_training_speedup
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
    "Layer",
    "LayerCost",
    "OtherRun",
    "RunningSummary",
    "Summary",
    "TraceLike",
    "activation_sizes",
    "inference_speedup",
    "layer_latency",
    "machines",
    "memory_footprint",
    "memory_ratio",
    "model_card",
    "multiplication_cost",
    "multiply_add_energy",
    "network_cost",
    "network_layers",
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
