"""`Recorder`: record a plain training loop with one line."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import chain, count
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch

from adapt.distributed import ranks
from adapt.engine.engine import Engine
from adapt.files import replacing
from adapt.learned.learner import Learner
from adapt.trace import Trace
from adapt.trace.description import plain

_SHARE = 0.05
"""The largest share of the training time to spend on writing."""
_FIRST_SECONDS = 10.0


class Recorder:
    """Writes trace, TensorBoard logs and the settings of a run into a folder, and prints a summary at the end.

        with adapt.Recorder(controller, "runs/a") as recorder:
            for epoch in range(10):
                ...  # your loop, unchanged
                recorder.log(accuracy=accuracy)

    Files are updated while the loop runs, for at most a twentieth of its time, and when it ends or fails. Read them
    with `adapt report runs/a` and `tensorboard --logdir runs`. Requires the extra "tensorboard". A folder with another
    run is left alone, and the run is written beside it, as runs/a-2. A run that resumes from a checkpoint continues in
    its folder, if the checkpoint is loaded before the context is entered. With several processes, only the first one
    writes, and only at the end of the loop.

    Args:
        controller: what `adapt.attach`, `adapt.learned.attach` or `attach_lsq` returned; for `adapt.ASGD` its
            `.controller`.
        folder: the folder to write to, created when the context is entered.

    Attributes:
        folder: the folder to which the run is written.

    Raises:
        TypeError: `controller` is not a controller.
    """

    def __init__(self, controller: Engine, folder: str | os.PathLike[str]) -> None:
        if not isinstance(controller, Engine):
            hint = ": pass its .controller" if hasattr(controller, "controller") else ""
            raise TypeError(f"controller must be a controller from attach(), got {type(controller).__name__}{hint}")
        self.folder = Path(folder)
        self._controller = controller
        self._open = ExitStack()
        self._writer: Any = None
        self._timeline: Any = None
        self._due = 0.0

    def __enter__(self) -> Self:
        """Open the folder, and start to write from time to time.

        Raises:
            ImportError: TensorBoard or matplotlib is missing.
            OSError: the folder cannot be written.
        """
        from torch.utils.tensorboard import SummaryWriter

        from adapt.tensorboard import Timeline

        trace = self._controller.trace
        if not _is_first():
            return self
        self.folder = next(_folders(self.folder, trace))
        last = int(trace.step[-1]) if len(trace) else -1
        # The steps that an interrupted run logged after the checkpoint will be logged again, so TensorBoard must forget
        # them.
        self._writer = self._open.enter_context(SummaryWriter(self.folder, purge_step=last + 1 if len(trace) else None))
        self._timeline = Timeline(self._writer, after=last)
        self._timeline.describe(self._made())
        self._due = time.monotonic() + _FIRST_SECONDS
        if not ranks.is_distributed():
            handle = self._controller.optimizer.register_step_post_hook(self._after_step)
            self._open.callback(handle.remove)
        return self

    def log(self, **values: float) -> None:
        """Log your own figures, such as loss and accuracy, at the present step."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, float(value), self._controller.step)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Update the files, and print a summary unless the loop has failed."""
        with self._open:
            # If one of several processes has failed, collective calls may hang.
            if error is not None and ranks.is_distributed():
                return
            trace = self._controller.trace
            if self._timeline is not None and len(trace):
                self._write(trace)
                if isinstance(self._controller, Learner):
                    widths = self._controller.widths
                    self._timeline.write_channels(widths.step, widths.by_channel())
                if error is None:
                    self._print(trace)

    def _after_step(self, *_: Any) -> None:
        start = time.monotonic()
        if start >= self._due:
            self._write(self._controller.trace)
            self._writer.flush()
            end = time.monotonic()
            self._due = end + (end - start) / _SHARE

    def _write(self, trace: Trace) -> None:
        widths = self._controller.widths if isinstance(self._controller, Learner) else None
        self._timeline.write(trace, widths)
        trace.save(self.folder / "trace.npz")
        if widths is not None:
            widths.save(self.folder / "widths.npz")
        described = {
            "run": self._made(),
            "formats": {name: str(form) for name, form in self._controller.formats.items()},
            "phases": self._controller.log if isinstance(self._controller, Learner) else [],
        }
        with replacing(self.folder / "run.json") as file:
            file.write(json.dumps(described, indent=1, default=str).encode())

    def _print(self, trace: Trace) -> None:
        from adapt.report.text import totals_lines

        shown = [f"{self.folder}: {self._controller!r}", *totals_lines(trace)]
        shown += [
            f"each layer       adapt report {self.folder}",
            f"curves           tensorboard --logdir {self.folder}",
        ]
        print("\n".join(shown))

    def _made(self) -> dict[str, Any]:
        """Return the settings of the run by name."""
        controller: Any = self._controller
        group = controller.optimizer.param_groups[0]
        optimizer = {
            "optimizer": type(controller.optimizer).__name__,
            "lr": group.get("initial_lr", group.get("lr")),
            "torch": torch.__version__,
        }
        return {**controller.trace.run, **plain(optimizer)}


def _is_first() -> bool:
    return not ranks.is_distributed() or torch.distributed.get_rank() == 0


def _folders(folder: Path, trace: Trace) -> Iterator[Path]:
    """Yield those of folder, folder-2, folder-3, … that are free or contain the beginning of this run."""
    for path in chain([folder], (folder.with_name(f"{folder.name}-{number}") for number in count(2))):
        file = path / "trace.npz"
        if not file.exists() or _is_same(Trace.load(file), trace):
            yield path


def _is_same(earlier: Trace, trace: Trace) -> bool:
    """Return whether one trace is the beginning of the other; False if one has no rows."""
    if not len(earlier) or not len(trace) or earlier.layers != trace.layers[: len(earlier.layers)]:
        return False
    last = min(earlier.step[-1], trace.step[-1])
    return all(
        np.array_equal(earlier[name][earlier.step <= last], trace[name][trace.step <= last, : len(earlier.layers)])
        for name in ("word_length", "fraction_length")
    )
