"""The tensors in a batch of example inputs, and how many samples they hold."""

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from adapt import arguments


def samples_of(example_inputs: tuple[Any, ...], batch_size: int | None) -> int:
    """Return the number of samples in the inputs: `batch_size`, or the first dimension that all their tensors share.

    In a torch_geometric batch, samples are graphs.

    Raises:
        TypeError: `batch_size` is not a whole number.
        ValueError: there is no input, no tensor among them, the tensors disagree, or the batch has no samples.
    """
    if not example_inputs:
        raise ValueError("example_inputs is empty: give one batch as forward takes it, operations(model, batch)")
    if batch_size is None:
        batch_size = next((one.num_graphs for one in example_inputs if hasattr(one, "num_graphs")), None)
    if batch_size is None:
        sizes = sorted(
            {
                int(leaf.batch_sizes[0]) if isinstance(leaf, PackedSequence) else len(leaf)
                for leaf in _leaves(example_inputs)
                if isinstance(leaf, PackedSequence) or leaf.ndim
            }
        )
        if not sizes:
            raise ValueError("example_inputs hold no tensor with a batch dimension: say batch_size=")
        if len(sizes) > 1:
            raise ValueError(f"example_inputs disagree on the batch, first dimensions are {sizes}: say batch_size=")
        batch_size = sizes[0]
    if arguments.whole("batch_size", batch_size, "samples") < 1:
        raise ValueError(f"batch_size must be at least 1 sample, got {batch_size}")
    return batch_size


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """Yield every tensor in nested containers, and the data of every packed sequence."""
    for leaf in _leaves(tree):
        yield leaf.data if isinstance(leaf, PackedSequence) else leaf


def _leaves(tree: Any) -> Iterator[Tensor | PackedSequence]:
    if isinstance(tree, Tensor | PackedSequence):  # a packed sequence is a tuple too
        yield tree
    elif isinstance(tree, Mapping):
        yield from _leaves(list(tree.values()))
    elif isinstance(tree, list | tuple | deque):
        for item in tree:
            yield from _leaves(item)
