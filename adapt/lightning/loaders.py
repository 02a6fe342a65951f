"""Read training batches ahead of the fit, without advancing its loaders."""

import contextlib
from collections.abc import Iterator
from itertools import islice
from typing import Any

from torch import Generator
from torch.utils.data import DataLoader, IterableDataset

from adapt.lightning.packages import LightningModule, Trainer, isolate_rng


def first_batches(trainer: Trainer, pl_module: LightningModule, count: int) -> list[Any]:
    """Return the first training batches as training_step will see them: combined, transferred, on the device.

    Loaders and random generators stay as they were.

    Raises:
        ValueError: the data can be read only once.
    """
    combined = trainer.fit_loop._combined_loader
    assert combined is not None
    # Another one, because the fit already iterates over its own.
    again = type(combined)(combined.iterables, combined._mode)
    with contextlib.ExitStack() as stack:
        stack.enter_context(isolate_rng())
        for loader in combined.flattened:
            stack.enter_context(_state_restored(loader))
        return [_to_device(batch, trainer, pl_module) for batch, *_ in islice(iter(again), count)]


def _to_device(batch: Any, trainer: Trainer, pl_module: LightningModule) -> Any:
    """Return a batch as the fit loop would hand it to training_step."""
    batch = trainer.precision_plugin.convert_input(batch)
    batch = pl_module._on_before_batch_transfer(batch, dataloader_idx=0)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=0)


@contextlib.contextmanager
def _state_restored(loader: Any) -> Iterator[None]:
    """Undo on exit what reading from a loader changes in it.

    Raises:
        ValueError: that cannot be undone.
    """
    parts = _parts(loader)
    streams = [(g, g.get_state()) for part in parts if isinstance(g := getattr(part, "generator", None), Generator)]
    states = [(part, part.state_dict()) for part in parts if _has_state(part)]
    if not states and _is_read_once(loader):
        raise ValueError(
            "activations are calibrated with the first training batches, but the training data can be read only once, "
            "so that training would miss them: give batches by calibration=…"
        )
    # A second iterator would reset persistent workers, from which the fit already reads.
    iterator = getattr(loader, "_iterator", None)
    if isinstance(loader, DataLoader):
        loader._iterator = None
    try:
        yield
    finally:
        if isinstance(loader, DataLoader):
            loader._iterator = iterator
        for generator, stream in streams:
            generator.set_state(stream)
        for part, state in states:
            part.load_state_dict(state)


def _parts(loader: Any) -> list[Any]:
    """Return the parts of a loader that reading may advance."""
    sampler = getattr(loader, "batch_sampler", None)
    rest = [sampler, getattr(sampler, "sampler", None), getattr(loader, "sampler", None)]
    return [loader, getattr(loader, "dataset", None), *rest]


def _has_state(part: Any) -> bool:
    """Return whether a part's position can be saved and restored; a torch loader keeps it in its iterators."""
    able = hasattr(part, "state_dict") and hasattr(part, "load_state_dict")
    return able and not isinstance(part, DataLoader)


def _is_read_once(loader: Any) -> bool:
    """Return whether two passes share an iterator."""
    if not isinstance(loader, DataLoader):
        return iter(loader) is iter(loader)
    return isinstance(loader.dataset, IterableDataset) and iter(loader.dataset) is iter(loader.dataset)
