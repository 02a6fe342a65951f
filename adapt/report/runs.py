"""The contents of a run's folder: its trace, and whatever was saved beside it."""

import csv
import importlib.util
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapt.engine.saved_formats import formats
from adapt.report.summary import Row, overall, summary
from adapt.trace import Trace
from adapt.trace.display import thinned
from adapt.trace.widths import Widths

Metrics = dict[str, tuple[list[float], list[float]]]
"""Steps and values of each logged quantity."""

ReadPacked = Callable[[Path], Mapping[str, tuple[str, int]]]
"""Returns for every tensor of words in a packed file its encoding and its bytes: `adapt.export.packed.stored_bytes`."""

_LARGEST_JSON = 16 * 2**20
_OURS = ("adapt/", "adapt_layers/", "custom_scalars", "hp_metric", "epoch", "step")
_POINTS = 400


@dataclass(frozen=True)
class Run:
    """One run as the report shows it.

    Attributes:
        name: how the user named it.
        trace: what happened.
        made: its settings, by name.
        operations: multiply-adds per sample by layer, if they were saved.
        widths: word lengths by channel, if they were learned.
        phases: what each phase of learning did.
        formats: the format of every quantised tensor as text, biases and activations included.
        metrics: what was logged.
        packed_file: the name of the packed file beside the trace, "" without one.
        packed_bytes: the bytes that each parameter's words take in it, entropy-coded where that is smaller.
    """

    name: str
    trace: Trace
    made: Row = field(default_factory=dict)
    operations: Mapping[str, int] | None = None
    widths: Widths | None = None
    phases: Sequence[Row] = ()
    formats: Mapping[str, str] = field(default_factory=dict)
    metrics: Metrics = field(default_factory=dict)
    packed_file: str = ""
    packed_bytes: Mapping[str, int] = field(default_factory=dict)

    def figures(self) -> Row:
        """Return everything that tables and pages show of the run, as plain numbers, texts and lists.

        Raises:
            ValueError: the trace has no rows.
        """
        rows = summary(self.trace, self.operations, self.widths)
        totals = overall(self.trace, rows, self.operations)
        if self.packed_bytes:
            rows = [row | {"packed_bytes": self.packed_bytes.get(row["layer"])} for row in rows]
            stored = [row["packed_bytes"] for row in rows]
            totals["packed_bytes"] = None if None in stored else sum(stored)
        return {
            "run": self.name,
            "made": self.made,
            "totals": totals,
            "metrics": {name: values[-1] for name, (_, values) in self.metrics.items()},
            "layers": rows,
            "formats": dict(self.formats),
            "phases": list(self.phases),
        }


def find_trace(run: Path) -> Path:
    """Return the file that a path names: the path itself, or a folder's trace.npz or only .npz file.

    Raises:
        ValueError: the folder has no .npz file, or several of which none is called trace.npz.
    """
    if not run.is_dir():
        return run
    found = sorted(path for path in run.glob("*.npz") if path.is_file() and path.name != "widths.npz")
    if not found:
        raise ValueError(f"{run} has no trace: there is no .npz file in it; name the file or the folder that has one")
    if run / "trace.npz" in found:
        return run / "trace.npz"
    if len(found) > 1:
        names = ", ".join(path.name for path in found[:5])
        raise ValueError(f"{run} has {len(found)} .npz files ({names}): name the one that you mean")
    return found[0]


def load_run(path: Path, read_packed: ReadPacked | None = None) -> Run:
    """Read a run: the trace that the path names, and of the files beside it those that can be read.

    These are widths.npz, run.json (run, operations, phases, formats), metrics.csv of Lightning's CSVLogger,
    TensorBoard's event files, the newest checkpoint, for the formats of biases and activations, and the newest packed
    file. Nothing in them is executed.

    Args:
        path: a trace, or the folder that holds one.
        read_packed: reads packed files (.safetensors), whose bytes are left out without it.

    Raises:
        OSError, ValueError: the trace cannot be read.
    """
    file = find_trace(path)
    trace = Trace.load(file)
    if not len(trace):
        raise ValueError(f"{file}: the trace has no rows: no optimizer step was recorded")
    folder = file.parent
    described = _described(folder / "run.json")
    beside = described.get("run")
    operations = described.get("operations")
    if isinstance(operations, dict):
        operations = {n: int(c) for n, c in operations.items() if isinstance(c, int) and 0 <= c < 2**62}
    else:
        operations = None
    packed_file, packed_bytes = ("", {}) if read_packed is None else _packed(folder, read_packed)
    return Run(
        name=str(path),
        trace=trace,
        made={**(beside if isinstance(beside, Mapping) else {}), **trace.run},
        operations=operations,
        widths=load_widths(folder),
        phases=[entry for entry in described.get("phases", []) if isinstance(entry, dict)],
        formats=_formats(folder, described),
        metrics=_from_csv(folder / "metrics.csv") or _from_events(folder),
        packed_file=packed_file,
        packed_bytes=packed_bytes,
    )


def _described(path: Path) -> dict[str, Any]:
    """Return what run.json says; nothing where it is missing, too large or damaged."""
    try:
        if path.stat().st_size > _LARGEST_JSON:
            return {}
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def load_widths(folder: Path) -> Widths | None:
    """Return the word lengths by channel that a run with learned widths left in its folder, if it did."""
    try:
        return Widths.load(folder / "widths.npz")
    except (OSError, ValueError):
        return None


def _formats(folder: Path, described: Mapping[str, Any]) -> dict[str, str]:
    """Return the formats that were saved, or those of the newest checkpoint."""
    saved = described.get("formats")
    if isinstance(saved, dict):
        return {name: str(form) for name, form in saved.items()}
    checkpoints = [*folder.glob("*.ckpt"), *folder.glob("checkpoints/*.ckpt"), *folder.glob("*.pt")]
    for path in _newest_first(checkpoints)[:1]:
        try:
            return {name: str(form) for name, form in formats(path).items()}
        except (OSError, ValueError, TypeError, RuntimeError):
            return {}
    return {}


def _packed(folder: Path, read: ReadPacked) -> tuple[str, dict[str, int]]:
    """Return the name of the newest packed file, and the bytes of each tensor of words in it."""
    for path in _newest_first(folder.glob("*.safetensors")):
        try:
            return path.name, {name: size for name, (_, size) in read(path).items()}
        except (OSError, ValueError, ImportError):
            continue
    return "", {}


def _newest_first(paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True)


def _from_csv(path: Path) -> Metrics:
    """Return what a CSVLogger wrote, except for what the trace contains."""
    found: Metrics = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                step = _number(row.get("step"))
                for name, text in row.items():
                    value = _number(text)
                    if isinstance(name, str) and _is_shown(name) and step is not None and value is not None:
                        steps, values = found.setdefault(name, ([], []))
                        steps.append(step)
                        values.append(value)
    except (OSError, ValueError, csv.Error):
        return {}
    return {name: _few(*points) for name, points in found.items()}


def _from_events(folder: Path) -> Metrics:
    """Return the scalars of TensorBoard's event files in the folder, except for what the trace contains."""
    if not any(folder.glob("*tfevents*")) or importlib.util.find_spec("tensorboard") is None:
        return {}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sizes = {"scalars": 4 * _POINTS, "images": 1, "histograms": 1, "tensors": 1}
    events = EventAccumulator(str(folder), size_guidance=sizes).Reload()
    found = {}
    for name in filter(_is_shown, events.Tags()["scalars"]):
        points = [p for p in events.Scalars(name) if math.isfinite(p.value)]
        if points:
            found[name] = _few([float(p.step) for p in points], [float(p.value) for p in points])
    return found


def _is_shown(name: str) -> bool:
    layers = tuple(f"{column}/" for column in Trace(["_"], [1]).columns)
    return not name.startswith(_OURS) and not name.startswith(layers)


def _number(text: object) -> float | None:
    try:
        value = float(text)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _few(steps: list[float], values: list[float]) -> tuple[list[float], list[float]]:
    """Return evenly spaced points, and the last."""
    chosen = thinned(0, len(steps), _POINTS).tolist()
    return [steps[i] for i in chosen], [values[i] for i in chosen]
