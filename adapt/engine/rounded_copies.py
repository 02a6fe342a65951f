"""Quantised copies of the network, such as averages of its weights."""

import copy
from collections.abc import Collection, Mapping
from typing import TypeVar

import torch
from torch import nn

from adapt.layers import frozen_rounding
from adapt.layers.naming import plain_names
from adapt.numerics import Format

Module = TypeVar("Module", bound=nn.Module)


@torch.no_grad()
def quantized(module: Module, names: Collection[str], formats: Mapping[str, Format]) -> Module:
    """Return a copy of a module with parameters rounded to nearest, and with hooks that round its activations.

    Args:
        module: the network of the run, or a copy of it with other values, bare or in a wrapper such as AveragedModel.
        names: the parameters that the run rounds.
        formats: the formats of parameters and activations, as in `Engine.formats`.

    Raises:
        ValueError: the module lacks a parameter.
    """
    rounded = copy.deepcopy(module)
    parameters = dict(rounded.named_parameters(remove_duplicate=False))
    parameters = {plain: parameters[name] for name, plain in plain_names(parameters).items()}
    for name in names:
        if name not in parameters:
            raise ValueError(f"module has no parameter {name!r}: give the network that is trained, or a copy of it")
        if name in formats:
            parameters[name].copy_(formats[name].quantize(parameters[name]))
    frozen_rounding.keep(rounded, formats)
    return rounded
