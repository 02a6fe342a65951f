"""`to_onnx`, a captured network as an ONNX file whose weights are integer words and whose rounding is explicit."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adapt import files
from adapt.arguments import check_option
from adapt.export import onnx_graph, onnx_norms, onnx_roundings
from adapt.export.exported import Exported
from adapt.export.extras import needs
from adapt.export.onnx_folding import fold
from adapt.export.onnx_integer import check_products, use_integer_products
from adapt.export.onnx_means import order_means
from adapt.export.onnx_operators import BatchNorm, LinearQuantization, Words
from adapt.export.onnx_words import check_words, store_biases, store_words
from adapt.export.rounding import Rounding
from adapt.export.runtime import runner
from adapt.torch_internals import tree_leaves

FORMS = ("qdq", "weights", "integer")
ARITHMETIC = ("exact", "operator", "folded")
OPSET = 21
"""The first that has words of 4 and 16 bits."""

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def to_onnx(
    exported: Exported, path: str | os.PathLike[str], inputs: Any, *, form: str = "qdq", batch_norm: str = "exact"
) -> None:
    """Write a captured network as an ONNX file.

    Weights are stored as integer words in 4, 8, 16 or 32 bits and one DequantizeLinear each. Every value is the word
    times its step, which is checked in the written file. The first dimension of the inputs, and so the batch,
    is free where the network allows it.

    Form "qdq" rounds activations by QuantizeLinear and DequantizeLinear, from which ONNX Runtime and others make
    integer products. Form "integer" has these products in the file, as QLinearConv, ConvInteger and MatMulInteger with
    words of 8 bits: for tools that take a file as it is, such as generators of C code. Form "weights" rounds
    activations by arithmetic in float32, which holds every format, and is as exact but no faster than float32.

    Biases that lie on the grid of input step × weight step are stored in 32 bits on that grid; others are added behind
    the layer in float32, because ONNX Runtime would silently round them to that grid.

    Args:
        exported: the captured network.
        path: the file. Its folder must exist.
        inputs: an example of the network's input, a tensor or a tuple of forward's positional arguments.
        form: "qdq", "weights" or "integer".
        batch_norm: "exact" computes batch normalisation and means over all positions as torch does, to the last bit;
            "operator" leaves them as one operator each, which is faster, but rounds differently. "folded", in the forms
            "qdq" and "integer", takes the factors of batch normalisations into the steps of the convolutions before
            them, and rounds what flows between layers in 8 bits, by its range on `inputs`, which should be a few dozen
            examples: the fastest, but no longer the network that was trained. How far its outputs are from it is
            printed.

    Raises:
        ModuleNotFoundError: onnx, onnxscript or torch.onnx.ops, which torch 2.8 brings, are missing: pip install
            'adapt-precision[onnx]'.
        ValueError: the form is unknown, or cannot represent a format; the message names the layer.
        OSError: the folder does not exist or cannot be written.
    """
    onnx = needs("onnx", "onnx")
    needs("onnxscript", "onnx")
    needs("torch.onnx.ops", "onnx")
    check_option("form", form, FORMS)
    check_option("batch_norm", batch_norm, ARITHMETIC)
    if batch_norm == "folded" and form == "weights":
        raise ValueError(f"batch_norm='folded' makes products of integers and needs form='qdq', got {form!r}")
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    if form != "weights":
        check_activations(exported)
    if form == "integer":
        check_products(exported)
    network = exported.module(rounding=Rounding if form == "weights" else LinearQuantization)
    if batch_norm == "exact":
        replace_norms(network, BatchNorm)
    store_words(network, exported, lambda words, form: Words(words, form.step, form.axis, form.groups))
    if form != "weights":
        store_biases(network, exported)
    model = program(network, inputs)
    graph = onnx_graph.Graph(model)
    if batch_norm == "exact":
        order_means(graph)
    onnx_graph.transpose_weights(graph)
    if batch_norm == "folded":
        fold(graph, [np.asarray(x.detach() if isinstance(x, Tensor) else x) for x in inputs])
    graph.drop_unread()
    onnx_roundings.absorb_relus(graph)
    onnx_roundings.merge_roundings(graph)
    onnx_roundings.separate_roundings(graph)
    onnx_norms.use_single_precision(graph)
    onnx_graph.keep_float32(graph)
    onnx_graph.separate_zeros(graph)
    if form == "integer":
        use_integer_products(graph)
    else:
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
    # torch treats a size of 1 as a constant.
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


def replace_norms(network: nn.Module, make: Callable[[nn.Module], nn.Module]) -> None:
    """Replace the batch normalisations of a network by what `make` returns for each."""
    for path, norm in list(network.named_modules()):
        if isinstance(norm, NORMS) and norm.running_var is not None:
            parent, _, name = path.rpartition(".")
            setattr(network.get_submodule(parent), name, make(norm))
