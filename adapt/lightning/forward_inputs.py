"""What the forward of a LightningModule takes: arguments out of a training batch, and the work of a pass with them."""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from adapt.layers.naming import plain_name
from adapt.lightning.packages import LightningModule, has_own_forward, move_data_to_device
from adapt.perfmodel import operations
from adapt.perfmodel.inputs import samples_of


def network_of(pl_module: LightningModule) -> nn.Module:
    """Return the module itself if it has a forward, otherwise its only submodule with parameters.

    Raises:
        ValueError: there are several, or none.
    """
    if has_own_forward(pl_module):
        return pl_module
    children = [child for child in pl_module.children() if any(True for _ in child.parameters())]
    if len(children) != 1:
        raise ValueError(
            f"{type(pl_module).__name__} has no forward and {len(children)} submodules with parameters: define "
            "forward, which calibration runs"
        )
    return children[0]


def batch_inputs(network: nn.Module, batch: Any, example: Any = None) -> Iterator[tuple[Any, ...]]:
    """Yield positional arguments out of a batch that forward might take, the likeliest first.

    Args:
        network: the module to run.
        batch: a training batch.
        example: `example_input_array`, whose names or number of arguments are tried first.
    """
    if isinstance(batch, Mapping):
        if isinstance(example, Mapping):
            yield from _arguments(network, {name: batch[name] for name in example if name in batch})
        yield from _arguments(network, batch)
    elif isinstance(batch, list | tuple):
        if example is not None and not isinstance(example, Mapping):
            yield tuple(batch[: len(example) if isinstance(example, tuple) else 1])
        yield from (tuple(batch[:count]) for count in range(1, len(batch) + 1))
    yield (batch,)


def _arguments(network: nn.Module, named: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    """Yield the positional arguments of the network's forward from named values, if these are all that it needs."""
    signature = inspect.signature(network.forward)
    try:
        bound = signature.bind(**{name: value for name, value in named.items() if name in signature.parameters})
    except TypeError:
        return
    if not bound.kwargs:
        yield bound.args


def count_operations(module: LightningModule, batch: Any) -> tuple[dict[Tensor, int] | None, str]:
    """Return multiply-adds per sample of each weight, or None and the reason why they are not known.

    They are counted in a call of `forward` with the module's `example_input_array`, or else with the part of the batch
    that forward takes. A module without a forward of its own is counted as its only submodule with parameters.
    """
    try:
        network = network_of(module)
    except ValueError:
        return None, f"{type(module).__name__} has no forward"
    reason = "its forward does not take the training batches"
    for inputs in _example_inputs(network, batch, module.example_input_array):
        try:
            counts = operations(network, *move_data_to_device(inputs, module.device))
        except (TypeError, ValueError, RuntimeError) as error:
            # Its advice is for callers of `operations`, which the callback's user is not.
            reason = str(error).partition(": say batch_size=")[0]
        else:
            weights = {plain_name(name): p for name, p in network.named_parameters(remove_duplicate=False)}
            return {weights[plain_name(name)]: count for name, count in counts.items()}, ""
    return None, reason


def _example_inputs(network: nn.Module, batch: Any, example: Any) -> Iterator[tuple[Any, ...]]:
    """Yield the example as arguments, if there is one, and then what forward might take of the batch."""
    if isinstance(example, tuple):
        yield example
    elif isinstance(example, Mapping):
        yield from _arguments(network, example)
    elif example is not None:
        yield (example,)
    if batch is not None:
        yield from batch_inputs(network, batch)


def batch_size(batch: Any) -> int | None:
    """Return the number of samples in a batch, or None if it is not clear."""
    try:
        return samples_of((batch,), None)
    except ValueError:
        return None
