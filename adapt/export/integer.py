"""Run a captured network in integers alone: exact products and sums, and shifts. A literal reference."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from adapt.export.dyadic import Dyadic
from adapt.export.exported import Exported
from adapt.export.integer_operations import OPERATIONS


class IntegerNetwork:
    """Computes what a captured network computes, in integers, from its graph as torch.export gives it.

    Layers are exact sums of products of words, which are refused where float32 could not hold them. What follows them
    in float32 (batch norm, shortcuts) is computed in whole numbers with the same rounding as the processor's. It runs
    networks of linear layers, convolutions (transposed ones too), batch norms, ReLU and clipped ReLU, pooling,
    additions, products with constants, padding, slices and changes of shape. Steps must be powers of two, and the sums
    of every layer must fit float32's 24 bits for the inputs at hand, so that the order of summation does not matter.

    Means over positions are summed in the order in which torch sums contiguous tensors here, with a rounding to 24 bits
    after every addition; ONNX files have the same order. Two sums are made exactly and rounded once here, where torch
    may round in between and so differ by a unit in the last place: means over other dimensions, and the sums of a layer
    with a bias that is not on the grid of its products, if the layer has several hundred inputs.

    Args:
        exported: the captured network, with its architecture.

    Raises:
        ValueError: a step is no power of two; the message names the tensor.
    """

    def __init__(self, exported: Exported) -> None:
        for name, form in exported.formats.items():
            if form.fraction_length is None:
                raise ValueError(
                    f"{name} has {form}, but whole numbers need powers of two as steps: train with a policy or with "
                    "attach_lsq(power_of_two=True), or compare with the packed file or an ONNX file"
                )
        self._module = exported.module()
        self._paths = set(exported.layers)
        self._programs: dict[tuple[torch.Size, ...], _Program] = {}

    def __call__(self, *inputs: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Return the outputs, float32, and what each quantised layer returns, by its path.

        Raises:
            NotImplementedError: the network has an operation without an integer reference.
            ValueError: the sums of a layer do not fit 24 bits, or its inputs lie on no common grid.
        """
        shapes = tuple(x.shape for x in inputs)
        if shapes not in self._programs:
            self._programs[shapes] = _traced(self._module, inputs)
        return self._run(self._programs[shapes], inputs)

    def _run(self, program: "_Program", inputs: Sequence[Tensor]) -> tuple[list[Tensor], dict[str, Tensor]]:
        left = iter(inputs)
        values: dict[torch.fx.Node, Any] = {}
        layers: dict[str, Tensor] = {}
        outputs: list[Tensor] = []
        for node in program.graph.nodes:
            if node.op == "placeholder":
                known = node.name in program.constants
                values[node] = program.constants[node.name] if known else _numbers(next(left))
            elif node.op == "call_function":
                arguments = torch.fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
                values[node] = _compute(node, *arguments)
                for used in node.all_input_nodes:
                    if program.last[used] is node:
                        del values[used]
                for path in _paths(node) & self._paths:
                    # The last operation of a layer leaves its result.
                    layers[path] = values[node]
            elif node.op == "output":
                outputs = [values[result].float() for result in node.args[0]]
        return outputs, {path: value.float() for path, value in layers.items() if isinstance(value, Dyadic)}


class _Program(NamedTuple):
    """A network's graph, its parameters by the names of their nodes, and the last node that reads each node."""

    graph: torch.fx.Graph
    constants: dict[str, Any]
    last: dict[torch.fx.Node, torch.fx.Node]


def _traced(module: nn.Module, inputs: tuple[Tensor, ...]) -> _Program:
    with torch.no_grad():
        program = torch.export.export(module, inputs).run_decompositions({})
    signature, state = program.graph_signature, {**program.state_dict, **program.constants}
    names = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    constants = {node: _numbers(state[name]) for node, name in names.items()}
    last = {used: node for node in program.graph.nodes for used in node.all_input_nodes}
    return _Program(program.graph, constants, last)


def _numbers(tensor: Tensor) -> Any:
    return Dyadic.of(tensor.detach()) if tensor.is_floating_point() else tensor


def _paths(node: torch.fx.Node) -> set[str]:
    """Return the paths of the modules within which a node was traced."""
    return {path.removeprefix("L['self'].") for path, _ in node.meta.get("nn_module_stack", {}).values()}


def _compute(node: torch.fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    name = getattr(node.target, "__name__", str(node.target)).partition(".")[0]
    layer = max(_paths(node), key=len, default="")
    if name not in OPERATIONS:
        raise NotImplementedError(f"{name} in {layer or 'the network'} has no integer reference")
    try:
        return OPERATIONS[name](*args, **kwargs)
    except ValueError as error:
        raise ValueError(f"{layer or 'the network'}: {error}") from error
