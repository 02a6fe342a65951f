"""Memory that training holds between two steps."""

import gc
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from benchmarks.bench import Bench
from benchmarks.networks import adaptive, plain
from benchmarks.table import Row
from benchmarks.timing import Ratio, repeated


def memory(bench: Bench) -> Iterator[Row]:
    """Bytes of all tensors that exist between two steps, gradients included, over those of float32 training."""
    for network in bench.sizes.networks:
        batches = network.batches(2, bench.device)
        sizes = []
        for make in (adaptive, plain):
            before = live_bytes()
            training = make(network, batches)
            repeated(training, 3)()
            sizes.append(live_bytes() - before)
            del training
        value = sizes[0] / sizes[1]
        yield Row(
            f"memory-{network.name}",
            f"{network.name}: training state / float32 SGD with momentum",
            Ratio(value, value, value),
            target=1.67,
            note=f"{sizes[0]} bytes against {sizes[1]}",
        )


def live_bytes() -> int:
    """Bytes of storage behind all tensors that Python can reach and their gradients, each storage counted once."""
    gc.collect()
    # By exact type, because fake tensors that a compiler left behind have no memory.
    tensors = [thing for thing in gc.get_objects() if type(thing) in (Tensor, nn.Parameter)]
    tensors += [tensor.grad for tensor in tensors if tensor.is_leaf and tensor.grad is not None]
    # A sparse tensor has no storage of its own.
    tensors = [tensor for tensor in tensors if tensor.layout == torch.strided]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())
