"""Weights and biases of an ONNX file as integer words, and the check that they are those of the training."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from adapt.export import onnx_graph
from adapt.export.exported import Exported
from adapt.export.onnx_integer import INTEGER_PRODUCTS, product_words
from adapt.export.onnx_operators import AddedBias, Words, by_channel
from adapt.export.rounding import INPUT, OUTPUT, add_rounding
from adapt.layers.naming import joined
from adapt.layers.products import PRODUCTS, TransposedLinear
from adapt.numerics.format import Format


def store_words(
    network: nn.Module, exported: Exported, stored: Callable[[Tensor, Format], nn.Module], *, biases: bool = False
) -> None:
    """Replace every quantised matrix, and optionally the layers' biases, by what `stored` makes of words and format."""
    for name, words in exported.words.items():
        form = exported.formats[name]
        path, _, leaf = name.rpartition(".")
        if words.ndim < 2 and not (biases and isinstance(_plain(exported, path), PRODUCTS)):
            continue
        layer = network.get_submodule(path)
        parametrize.register_parametrization(layer, leaf, stored(words, form), unsafe=True)


def store_biases(network: nn.Module, exported: Exported) -> None:
    """Replace every bias by words of 32 bits times input step × weight step, or add it after its layer.

    A bias that lies on a finer grid of powers of two gets it from weights in finer steps, whose words are a multiple of
    the layer's own, as long as they have 8 bits.
    """
    for path, layer in list[tuple[str, Any]](network.named_modules()):
        bias, plain = layer._parameters.get("bias"), _plain(exported, path)
        if bias is None or not isinstance(plain, PRODUCTS):
            continue
        steps = _product_steps(exported, path, plain)
        factors = [] if steps is None else _factors(layer)
        found = ((factor, _whole(bias, steps / factor)) for factor in factors)
        factor, words = next(((factor, words) for factor, words in found if words is not None), (1, None))
        if words is None:
            # transformers' Conv1D needs a bias.
            keeps = isinstance(plain, TransposedLinear)
            layer._parameters["bias"] = nn.Parameter(torch.zeros_like(bias)) if keeps else None
            add_behind(layer, AddedBias(bias.detach().view(-1, *[1] * (layer.weight.ndim - 2))))
            continue
        axis = None if np.ndim(steps) == 0 else 0
        if factor > 1:
            layer.parametrizations.weight[0].refine(factor)
        parametrize.register_parametrization(layer, "bias", Words(words, steps / factor, axis), unsafe=True)


def _plain(exported: Exported, path: str) -> Any:
    """Return the layer in the captured network; the class of its copy, which rounds, is no longer recognised."""
    assert exported.structure is not None
    return next((layer for name, layer in exported.structure.named_modules() if name == path), None)


def _factors(layer: Any) -> list[int]:
    """Return the powers of two by which the words of a layer's weight can be multiplied and still have 8 bits."""
    words = layer.parametrizations.weight[0].words
    if words.dtype != torch.int8:
        return [1]
    low, high = int(words.min()), int(words.max())
    return [factor for factor in (1, 2, 4, 8, 16, 32, 64) if factor * low >= -128 and factor * high <= 127]


def add_behind(layer: nn.Module, module: nn.Module) -> None:
    """Run a module after a layer, before the rounding of the layer's output."""
    rounding = layer._modules.get(OUTPUT)
    if rounding is not None or INPUT in layer._modules:
        layer._modules[OUTPUT] = module if rounding is None else nn.Sequential(module, rounding)
    else:
        add_rounding(layer, output=module)


def _product_steps(exported: Exported, path: str, layer: nn.Module) -> Any:
    """Input step × weight step, [] or by output channel, where both are known and float32 holds it; else None."""
    site, form = (exported.formats.get(joined(path, end)) for end in ("input", "weight"))
    if site is None or form is None:
        return None
    is_transposed = getattr(layer, "transposed", False) or isinstance(layer, TransposedLinear)
    if form.axis is not None and form.axis != (1 if is_transposed else 0):
        return None
    steps = np.asarray(site.step * form.step)
    return steps if (steps.astype(np.float32) == steps).all() else None


def _whole(bias: Tensor, steps: Any) -> Tensor | None:
    """The bias in whole steps as int32, or None where it lies off that grid."""
    words = bias.detach().double().numpy() / steps
    fits = np.all(words == np.rint(words)) and np.all(np.abs(words) < 2**31)
    return torch.from_numpy(words.astype(np.int32)) if fits else None


def check_words(model: Any, exported: Exported, *, folded: bool = False) -> None:
    """Assert that every quantised matrix is in a model as its words, and that their steps are those of its format.

    Words may be a multiple of the format's, in steps that are as many times finer. Folded, channels may have the
    opposite sign and other steps.

    Raises:
        ValueError: one is not, because ONNX's operator for its layer takes float32 weights.
    """
    stored = list(_dequantized(model))
    for name, words in exported.words.items():
        if words.ndim < 2:
            continue
        form = exported.formats[name]
        own, steps = by_channel(words, form.groups).numpy().astype(np.int64), form.step.astype(np.float32)
        if not any(_are_words(found, step, own, steps, folded) for found, step in stored):
            raise ValueError(
                f"{name} did not become integer words, because the operators of its layer only take float32 weights: "
                "leave it out of the quantised layers, or save a packed file, which holds every layer"
            )


def _are_words(found: Any, step: Any, own: Any, steps: Any, folded: bool) -> bool:
    """Whether words of a file are a layer's own, or those times a whole number in finer steps."""
    factor = max(int(np.abs(found).max(initial=0)) // max(int(np.abs(own).max(initial=0)), 1), 1)
    equal = _equal_but_for_signs if folded else np.array_equal
    return (folded or np.array_equal(step * factor, steps)) and (
        equal(found, own * factor) or equal(found, own.T * factor)
    )


def _equal_but_for_signs(a: Any, b: Any) -> bool:
    """Whether words are equal, but for the sign of a whole channel."""
    if a.shape != b.shape:
        return False
    rows = [x.reshape(len(x), -1) for x in (a, b)]
    return bool(((rows[0] == rows[1]).all(1) | (rows[0] == -rows[1]).all(1)).all())


def _dequantized(model: Any) -> Iterator[tuple[Any, Any]]:
    """Words and steps of every constant that a DequantizeLinear or a product of integers reads, or Casts and a Mul."""
    graph = onnx_graph.Graph(model)
    for node in graph.graph.node:
        if node.op_type in INTEGER_PRODUCTS:
            words, step = product_words(graph, node)
            yield words.astype(np.int64), step
    for node in graph.nodes("DequantizeLinear"):
        name, factor = node.input[0], 1
        while (writer := graph.writer.get(name)) is not None and writer.op_type in ("Cast", "Mul"):
            name = writer.input[0]
            factor *= int(graph.constants[writer.input[1]]) if writer.op_type == "Mul" else 1
        if name in graph.constants:
            yield graph.constants[name].astype(np.int64) * factor, graph.constants[node.input[1]]
