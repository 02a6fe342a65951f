"""The layers of a network as the cost models see them: work, weights, inputs and outputs."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from adapt.perfmodel.activations import LayerActivations, layer_activations
from adapt.perfmodel.operations import operations


@dataclass(frozen=True)
class Layer:
    """A weight, and the products that it takes part in.

    Attributes:
        name: the weight's parameter name.
        kind: "convolution", "pointwise", "depthwise", "linear" or "lookup".
        multiply_adds: per sample.
        weights: number of elements.
        inputs, outputs: elements per sample of the owning module's input and output; if the module has several
            weights, these are divided equally among them.
    """

    name: str
    kind: str
    multiply_adds: int
    weights: int
    inputs: int
    outputs: int


def network_layers(model: nn.Module, *example_inputs: Any, batch_size: int | None = None) -> tuple[Layer, ...]:
    """Return a layer for every parameter of two or more dimensions, in the order of `operations`.

    Args:
        model, example_inputs, batch_size: as in `operations`.

    Raises:
        TypeError, ValueError, RuntimeError: as in `operations`.
    """
    counts = operations(model, *example_inputs, batch_size=batch_size)
    flows = layer_activations(model, *example_inputs, batch_size=batch_size)
    sizes = [parameter.numel() for parameter in model.parameters() if parameter.ndim >= 2]
    owners = {name: _owner(name, flows) for name in counts}
    sharing = list(owners.values())
    layers = []
    for (name, multiply_adds), weights in zip(counts.items(), sizes, strict=True):
        flow = flows.get(owners[name], LayerActivations("linear", 0, 0))
        parts = sharing.count(owners[name])
        kind = flow.kind if multiply_adds else "lookup"
        layers.append(Layer(name, kind, multiply_adds, weights, flow.inputs // parts, flow.outputs // parts))
    return tuple(layers)


def _owner(weight: str, flows: dict[str, LayerActivations]) -> str:
    """Return the module that runs with this weight: its own, or the nearest enclosing one that has run."""
    module = weight.partition("parametrizations.")[0].removesuffix(".") if "parametrizations." in weight else weight
    module = module if module in flows else module.rpartition(".")[0]
    while module not in flows and module:
        module = module.rpartition(".")[0]
    return module
