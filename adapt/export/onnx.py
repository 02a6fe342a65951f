"""`to_onnx`, a captured network as an ONNX file whose weights are integer words and whose rounding is explicit."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from adapt import files
from adapt.export import onnx_graph
from adapt.export.exported import Exported
from adapt.export.extras import needs
from adapt.export.onnx_folding import fold
from adapt.export.onnx_operators import AddedBias, BatchNorm, LinearQuantization, Words
from adapt.export.rounding import INPUT, OUTPUT, Rounding, add_rounding
from adapt.export.runtime import runner
from adapt.numerics.format import Format
from adapt.torch_internals import ConvNd, tree_leaves

FORMS = ("qdq", "weights")
ARITHMETIC = ("exact", "operator", "folded")
OPSET = 21
"""The first that has words of 4 and 16 bits."""

LAYERS = (nn.Linear, ConvNd)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def to_onnx(
    exported: Exported,
    path: str | os.PathLike[str],
    inputs: Any,
    *,
    form: str = "qdq",
    batch_norm: str = "exact",
) -> None:
    """Write a captured network as an ONNX file.

    Weights are stored as integer words in 4, 8, 16 or 32 bits and one DequantizeLinear each. Every value is the word
    times its step, which is asserted of the file that was written. The first dimension of the inputs, and so the batch,
    is free where the network allows it.

    Form "qdq" rounds activations by QuantizeLinear and DequantizeLinear, from which ONNX Runtime and others make
    integer products. Form "weights" rounds them by arithmetic in float32, which holds every format, and is as exact but
    no faster than float32.

    Biases that lie on the grid of input step × weight step are stored in 32 bits on that grid; others are added behind
    the layer in float32, because ONNX Runtime would round them to it without a word.

    Args:
        exported: the captured network.
        path: the file. Its folder must exist.
        inputs: an example of the network's input, a tensor or a tuple of forward's positional arguments.
        form: "qdq" or "weights".
        batch_norm: "exact" computes batch normalisation and means over all positions as torch does, to the last bit;
            "operator" leaves them as one operator each, which is faster, but rounds otherwise. "folded", in form "qdq",
            takes the factors of batch normalisations into the steps of the convolutions before them, and rounds what
            flows between layers in 8 bits, by its range on `inputs`, which should be a few dozen examples: the fastest,
            but no longer the network that was trained. How far its outputs are from it is printed.

    Raises:
        ModuleNotFoundError: onnx, onnxscript or torch.onnx.ops, which torch 2.8 brings, are missing: pip install
            'adapt-precision[onnx]'.
        ValueError: the form is unknown, or does not hold a format; the message names the layer.
        OSError: the folder does not exist or cannot be written.
    """
    onnx = needs("onnx", "onnx")
    needs("onnxscript", "onnx")
    needs("torch.onnx.ops", "onnx")
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
    check_arithmetic(batch_norm)
    if batch_norm == "folded" and form != "qdq":
        raise ValueError(f"batch_norm='folded' makes products of integers and needs form='qdq', got {form!r}")
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    if form == "qdq":
        check_activations(exported)
    network = exported.module(rounding=LinearQuantization if form == "qdq" else Rounding)
    if batch_norm == "exact":
        exact_norms(network)
    store_words(network, exported, lambda words, form: Words(words, form.step, form.axis))
    if form == "qdq":
        store_biases(network, exported)
    model = program(network, inputs)
    graph = onnx_graph.Graph(model)
    if batch_norm == "exact":
        onnx_graph.order_means(graph)
    onnx_graph.transpose_weights(graph)
    if batch_norm == "folded":
        fold(graph, [np.asarray(x.detach() if isinstance(x, Tensor) else x) for x in inputs])
    graph.drop_unread()
    onnx_graph.absorb_relus(graph)
    onnx_graph.merge_roundings(graph)
    onnx_graph.separate_roundings(graph)
    onnx_graph.separate_zeros(graph)
    onnx_graph.shorten_words(graph)
    graph.drop_unread()
    onnx_graph.strip_metadata(model)
    check_words(model, exported, folded=batch_norm == "folded")
    with files.replacing(Path(path)) as file:
        file.write(model.SerializeToString())
    check_words(onnx.load(path), exported, folded=batch_norm == "folded")
    if batch_norm == "folded":
        print(f"{os.fspath(path)}, with batch normalisation folded: {_deviation(exported, path, inputs)}")


def _deviation(exported: Exported, path: str | os.PathLike[str], inputs: tuple[Any, ...]) -> str:
    """How far the outputs of a file are from those of the captured network."""
    with torch.no_grad():
        (expected, *_) = tree_leaves(exported.module()(*inputs))
    found = runner(path)(*inputs)[0]
    different, largest = (found != expected).double().mean(), (found - expected).abs().max()
    spread = expected.std()
    return (
        f"{different:.1%} of outputs differ from the captured network's, by up to {largest:.3g}; their standard "
        f"deviation is {spread:.3g}"
    )


def program(network: nn.Module, inputs: tuple[Any, ...], *, free_batch: bool = True) -> Any:
    """Return the network as torch's exporter writes it, as an ONNX model of any batch or of that of the inputs."""
    # torch takes a size of 1 for a constant.
    tensors = [isinstance(x, Tensor) and x.ndim > 0 and free_batch for x in inputs]
    several = tuple(torch.cat([x, x]) if free and len(x) == 1 else x for x, free in zip(inputs, tensors, strict=True))
    batch = tuple({0: torch.export.Dim.AUTO} if free else None for free in tensors)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        exported = torch.onnx.export(
            network, several, dynamo=True, opset_version=OPSET, dynamic_shapes=batch, verbose=False
        )
    assert exported is not None
    return exported.model_proto


def check_arithmetic(batch_norm: str) -> None:
    """Refuse a way of batch normalisation that does not exist.

    Raises:
        ValueError: it does not.
    """
    if batch_norm not in ARITHMETIC:
        raise ValueError(f"batch_norm must be one of {', '.join(ARITHMETIC)}, got {batch_norm!r}")


def check_activations(exported: Exported) -> None:
    """Refuse activations that QuantizeLinear cannot round.

    Raises:
        ValueError: there is one; the message names it.
    """
    for name, form in exported.sites.items():
        bits = int(np.max(form.word_length))
        problem = (
            f"has {bits} bits, and QuantizeLinear rounds to at most 16: train it with 16 bits"
            if bits > 16
            else "has one signed bit, and QuantizeLinear has no format without a zero: train it with 2 bits"
            if bits == 1 and bool(np.any(form.signed))
            else None
        )
        if problem:
            raise ValueError(f"{name} {problem}, or export with form='weights', which rounds in float32")


def exact_norms(network: nn.Module) -> None:
    """Put `BatchNorm` in the place of batch normalisations."""
    for path, norm in list(network.named_modules()):
        if isinstance(norm, NORMS) and norm.running_var is not None:
            replace(network, path, BatchNorm(norm))


def replace(network: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module at this path, with the hooks of what was there gone."""
    parent, _, name = path.rpartition(".")
    setattr(network.get_submodule(parent), name, module)


def store_words(
    network: nn.Module,
    exported: Exported,
    stored: Callable[[Tensor, Format], nn.Module],
    *,
    biases: bool = False,
) -> None:
    """Let every quantised matrix, and on demand the layers' biases, be what `stored` makes of words and format.

    Raises:
        ValueError: a format has channels that no operator has; the message names the layer.
    """
    for name, words in exported.words.items():
        form = exported.formats[name]
        path, _, leaf = name.rpartition(".")
        layer = network.get_submodule(path)
        if words.ndim < 2 and not (biases and isinstance(layer, LAYERS)):
            continue
        if form.groups > 1:
            raise ValueError(
                f"{name} has a format for each channel of {form.groups} groups, which no operator of ONNX has: train "
                "this transposed convolution with one format for the whole layer"
            )
        parametrize.register_parametrization(layer, leaf, stored(words, form), unsafe=True)


def store_biases(network: nn.Module, exported: Exported) -> None:
    """Let every bias be a word of 32 bits times input step × weight step, or be added behind its layer."""
    for path, layer in list(network.named_modules()):
        bias = layer._parameters.get("bias")
        if not isinstance(layer, LAYERS) or bias is None:
            continue
        steps = _product_steps(exported, path, layer)
        words = None if steps is None else _whole(bias, steps)
        if words is not None:
            assert steps is not None
            axis = None if steps.ndim == 0 else 0
            parametrize.register_parametrization(layer, "bias", Words(words, steps, axis), unsafe=True)
        else:
            layer._parameters["bias"] = None
            add_behind(layer, AddedBias(bias.detach().view(-1, *[1] * _positions(layer))))


def add_behind(layer: nn.Module, module: nn.Module) -> None:
    """Let a module follow a layer, in front of what rounds the layer's output."""
    rounding = layer._modules.get(OUTPUT)
    if rounding is not None or INPUT in layer._modules:
        layer._modules[OUTPUT] = module if rounding is None else nn.Sequential(module, rounding)
    else:
        add_rounding(layer, output=module)


def _positions(layer: Any) -> int:
    return 0 if isinstance(layer, nn.Linear) else int(layer.weight.ndim) - 2


def _product_steps(exported: Exported, path: str, layer: nn.Module) -> Any:
    """Input step × weight step, [] or by output channel, where both are known and float32 holds it; else None."""
    site, form = (exported.formats.get(f"{path}.{end}" if path else end) for end in ("input", "weight"))
    if site is None or form is None or INPUT not in layer._modules:
        return None
    if form.axis is not None and form.axis != (1 if getattr(layer, "transposed", False) else 0):
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

    Folded, channels may have the opposite sign and other steps.

    Raises:
        ValueError: one is not, as that of a layer which ONNX's own operator takes in float32.
    """
    stored = list(_dequantized(model))
    for name, words in exported.words.items():
        if words.ndim < 2:
            continue
        equal = _equal_but_for_signs if folded else np.array_equal
        own, steps = words.numpy(), exported.formats[name].step.astype(np.float32)
        same = (step for found, step in stored if equal(found, own) or equal(found, own.T))
        if not any(np.array_equal(step, steps) or folded for step in same):
            raise ValueError(
                f"{name} did not become integer words, because the operators of its layer take float32 weights alone: "
                "leave it out of the quantised layers, or save a packed file, which holds every layer"
            )


def _equal_but_for_signs(a: Any, b: Any) -> bool:
    """Whether words are equal, but for the sign of a whole channel."""
    if a.shape != b.shape:
        return False
    rows = [x.reshape(len(x), -1).astype(np.int64) for x in (a, b)]
    return bool(((rows[0] == rows[1]).all(1) | (rows[0] == -rows[1]).all(1)).all())


def _dequantized(model: Any) -> list[tuple[Any, Any]]:
    """Words and steps of every constant that a DequantizeLinear reads, itself or behind a Cast."""
    graph = onnx_graph.Graph(model)
    found = []
    for node in graph.nodes("DequantizeLinear"):
        name = node.input[0]
        cast = graph.writer.get(name)
        name = cast.input[0] if cast is not None and cast.op_type == "Cast" else name
        if name in graph.constants:
            words = graph.constants[name]
            found.append((words.astype(np.int64), graph.constants[node.input[1]]))
    return found
