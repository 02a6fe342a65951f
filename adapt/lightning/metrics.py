"""What is logged, drawn and saved for a run: figures, layers' values, timelines and files."""

import importlib.util
import math
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from adapt.layers.naming import named
from adapt.lightning.packages import LightningModule, Logger, classes
from adapt.perfmodel import RunningSummary
from adapt.trace import Trace
from adapt.trace.display import shown_columns


class Saved(Protocol):
    """A record with rows that can be written to a file."""

    def __len__(self) -> int: ...

    def save(self, path: Path) -> None: ...


def distinct_names(
    traces: Sequence[Trace], layers: Sequence[Mapping[str, Tensor]], module: LightningModule
) -> list[Sequence[str]]:
    """Return names for the layers of each trace, so that no two layers have the same name.

    They are the names that the controllers use; where two controllers use the same name, the module's names replace
    them.

    Args:
        traces: one for each optimizer.
        layers: the parameters of each trace, by its names.
        module: the module that the parameters belong to.
    """
    names: list[Sequence[str]] = [trace.layers for trace in traces]
    if len(set(chain(*names))) == sum(map(len, names)):
        return names
    known = {id(parameter): name for name, parameter in named(module).items()}
    return [
        [known.get(id(parameters.get(name)), f"optimizer_{index}.{name}") for name in own]
        for index, (own, parameters) in enumerate(zip(names, layers, strict=True))
    ]


def layer_values(
    traces: Sequence[Trace], names: Sequence[Sequence[str]], *, internals: bool = False
) -> dict[str, float]:
    """Return the last row of each trace as `adapt_layers/column/layer`, the policy's own columns included.

    Columns that may hold NaN are left out. Before the first row all values are NaN, so that the keys never change.

    Args:
        traces: one for each optimizer.
        names: the names of each trace's layers.
        internals: whether lookback, resolution and diversity are returned too.
    """
    return {
        f"adapt_layers/{name}/{layer}": float(value)
        for trace, layers in zip(traces, names, strict=True)
        for name in shown_columns(trace, internals=internals)
        if not trace.columns[name].nan
        for layer, value in zip(layers, trace[name][-1] if len(trace) else [math.nan] * len(layers), strict=True)
    }


class Aggregates:
    """Computes the figures of a whole run, over all its optimizers: `Aggregates(…).update(traces, counts)`.

    Args:
        batch_size: samples in a micro-batch.
        accumulation: micro-batches in a step; None if it changes during training, which leaves the training speedup
            out.
    """

    def __init__(self, *, batch_size: int, accumulation: int | None) -> None:
        self._batch_size, self._accumulation = batch_size, accumulation
        self._running: dict[int, tuple[RunningSummary, int, tuple[str, ...]]] = {}

    def update(self, traces: Sequence[Trace], counts: Sequence[Mapping[str, int]]) -> dict[str, float]:
        """Return mean word length, non-zero share, size and memory ratio, and the speedups if they are known.

        Args:
            traces: one for each optimizer.
            counts: the multiply-adds per sample of each trace's layers. If all are 0, because they are not known, the
                speedups are left out.
        """
        begun = [index for index, trace in enumerate(traces) if len(trace)]
        if not begun:
            return {}
        summaries = [self._summary(index, traces[index], counts[index]) for index in begun]
        weights = [int(traces[index].numel.sum()) for index in begun]
        figures = {
            name: float(np.average([getattr(summary, name) for summary in summaries], weights=weights))
            for name in ("mean_word_length", "nonzero", "size_ratio", "memory_ratio")
        }
        work = [sum(counts[index].values()) for index in begun]
        if any(work):
            # Costs add up. Every speedup compares with float32, whose cost is the work itself.
            samples = [amount * len(traces[index]) for amount, index in zip(work, begun, strict=True)]
            if self._accumulation is not None:
                figures["training_speedup"] = _ratio(samples, [s.training_speedup for s in summaries])
            figures["inference_speedup"] = _ratio(work, [s.inference_speedup for s in summaries])
        return {f"adapt/{name}": value for name, value in figures.items()}

    def _summary(self, index: int, trace: Trace, counts: Mapping[str, int]) -> Any:
        running, rows, layers = self._running.get(index, (None, 0, ()))
        if running is None or len(trace) < rows or trace.layers != layers:
            # If no product is known, sizes take their place; the figures that need products are then left out.
            known = any(counts.values())
            running = RunningSummary(
                counts if known else dict(zip(trace.layers, trace.numel.tolist(), strict=True)),
                batch_size=self._batch_size,
                accumulation=self._accumulation or 1,
            )
        self._running[index] = running, len(trace), trace.layers
        return running.update(trace)


def _ratio(work: Sequence[int], speedups: ArrayLike) -> float:
    cost = float(np.sum(np.divide(work, speedups)))
    return float(np.sum(work)) / cost if cost else math.inf


def save_files(files: Mapping[str, Saved], loggers: Sequence[Logger]) -> list[Path]:
    """Write the files that have rows into every logger's local folder, and return their paths.

    Raises:
        OSError: a folder cannot be written.
    """
    folders = {getattr(logger, "log_dir", None) for logger in loggers}
    paths = []
    for folder in sorted(folder for folder in folders if isinstance(folder, str) and "://" not in folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, record in files.items():
            if len(record):
                record.save(Path(folder, name))
                paths.append(Path(folder, name))
    return paths


def timelines(loggers: Sequence[Logger], *, internals: bool = False) -> dict[Logger, Any]:
    """Return a `Timeline` for every TensorBoard logger: it leaves out the points at which nothing has changed."""
    kinds = classes("loggers.TensorBoardLogger")
    drawing = [logger for logger in loggers if isinstance(logger, kinds)]
    if not drawing or importlib.util.find_spec("matplotlib") is None:
        return {}
    from adapt.tensorboard import Timeline

    return {logger: Timeline(logger.experiment, internals=internals) for logger in drawing}


def merged(traces: Sequence[Trace], names: Sequence[Sequence[str]]) -> Trace:
    """Return one trace for the pictures, with the layers of all optimizers and the steps that all of them made.

    Args:
        traces: one for each optimizer.
        names: the names of each trace's layers, no two the same.
    """
    if len(traces) == 1:
        return traces[0]
    own = {name: column for trace in traces for name, column in trace.own_columns.items()}
    merged = Trace(list(chain(*names)), np.concatenate([trace.numel for trace in traces]), own)
    steps = traces[0].step
    for other in traces[1:]:
        steps = np.intersect1d(steps, other.step)
    rows = [np.isin(trace.step, steps) for trace in traces]
    values = {
        name: np.concatenate(
            [
                trace[name][chosen]
                if name in trace.columns
                else np.full((len(steps), len(trace.layers)), column.default)
                for trace, chosen in zip(traces, rows, strict=True)
            ],
            axis=1,
        )
        for name, column in merged.columns.items()
    }
    merged.append(steps, **values)
    return merged
