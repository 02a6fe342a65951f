"""This processor as a hardware profile: what layers of each kind and width cost, fitted to measurements of some."""

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from adapt.perfmodel import HardwareProfile, Layer, LayerCost
from adapt.profiling.processor import processor
from adapt.profiling.stopwatch import fastest, one_core
from adapt.profiling.workloads import Workload, runnable_widths

KINDS = ("convolution", "pointwise", "depthwise", "linear")

_MOST_WORK = 400_000_000
"""Multiply-adds of a layer at most; larger ones cost time and tell nothing new."""


def calibration_layers(kind: str, count: int, seed: int = 0) -> list[Workload]:
    """Return layers of one kind with random sizes, evenly spread on a logarithmic scale."""
    generator = np.random.default_rng([KINDS.index(kind), seed])
    found: list[Workload] = []
    while len(found) < count:
        workload = _random_layer(kind, generator)
        if workload.layer().multiply_adds * workload.batch <= _MOST_WORK:
            found.append(workload)
    return found


def measure_processor(
    *, layers: int = 48, rounds: int = 8, progress: Callable[[str], object] = print
) -> HardwareProfile:
    """Return a profile of this processor, in one thread; takes about a minute.

    Rates are the highest that any layer reached at a width, bandwidth is that of a large copy, and costs are fitted to
    layers of random sizes. 8 bits are measured where onnx and onnxruntime are installed.

    Args:
        layers: how many of each kind are measured at each width.
        rounds: how often each is timed.
        progress: is told what is being measured.
    """
    costs: dict[str, dict[float, LayerCost]] = {kind: {} for kind in KINDS}
    rates: dict[float, float] = {}
    with one_core():
        for kind in KINDS:
            workloads = calibration_layers(kind, layers)
            described = [workload.layer() for workload in workloads]
            batches = [workload.batch for workload in workloads]
            for bits in runnable_widths():
                progress(f"{layers} layers, {kind}, {bits} bits")
                seconds = fastest([workload.call(bits) for workload in workloads], rounds=rounds)
                costs[kind][bits] = fit_cost(described, batches, seconds)
                work = np.array([layer.multiply_adds for layer in described]) * batches
                rates[bits] = max(rates.get(bits, 0.0), float((2e-12 * work / seconds).max()))
        bandwidth = _bandwidth(rounds)
    source = f"measured in one thread: the fastest of {rounds} rounds of {layers} layers of each kind and width"
    return HardwareProfile(processor(), rates, bandwidth, costs, source)


def fit_cost(layers: Sequence[Layer], batches: Sequence[int], seconds: NDArray[np.float64]) -> LayerCost:
    """Return the costs, none below 0, with the least sum of relative errors over measured layers.

    Args:
        layers: of one kind.
        batches: samples at once, for each layer.
        seconds: what each took.
    """
    amounts = np.array([_amounts(layer, batch) for layer, batch in zip(layers, batches, strict=True)])
    largest = amounts.max(axis=0)
    relative = amounts / largest / seconds[:, None]
    importance = np.ones(len(seconds))
    # Least squares, repeated with weights 1/|error|, minimises the sum of the errors: outliers pull less.
    for _ in range(30):
        found = _nonnegative(relative * importance[:, None], importance)
        importance = (np.abs(relative @ found - 1) + 1e-3) ** -0.5
    return LayerCost(*(found / largest).tolist())


def as_toml(profile: HardwareProfile) -> str:
    """Return a profile as a file that `HardwareProfile.load` reads."""
    lines = [f"name = {_quoted(profile.name)}", f"source = {_quoted(profile.source)}"]
    if profile.bandwidth is not None:
        lines.append(f"bandwidth = {profile.bandwidth:.4g}  # GB/s")
    lines += ["", "[rates]  # bits: 10¹² operations per second, the highest that was measured"]
    lines += [f"{bits:g} = {rate:.4g}" for bits, rate in sorted(profile.rates.items())]
    for kind, by_width in profile.costs.items():
        for bits, cost in sorted(by_width.items()):
            lines += ["", f"[costs.{kind}.{bits:g}]  # seconds"]
            lines += [f"{name} = {value:.4g}" for name, value in vars(cost).items()]
    return "\n".join(lines) + "\n"


def save(profile: HardwareProfile, path: Path) -> None:
    """Write a profile to a TOML file."""
    path.write_text(as_toml(profile), encoding="utf-8")


def _random_layer(kind: str, generator: np.random.Generator) -> Workload:
    def between(low: int, high: int, multiple: int = 8) -> int:
        return round(math.exp(generator.uniform(math.log(low), math.log(high))) / multiple) * multiple

    if kind == "linear":
        return Workload(kind, between(1, 256, 1), between(64, 3072), between(64, 3072))
    batch, size = int(generator.choice([1, 1, 1, 4, 8])), int(generator.choice([7, 8, 14, 16, 28, 32, 56]))
    stride = int(generator.choice([1, 1, 1, 2]))
    if kind == "depthwise":
        channels = between(16, 768)
        return Workload(kind, batch, channels, channels, size, int(generator.choice([3, 3, 5])), stride)
    return Workload(kind, batch, between(16, 512), between(16, 512), size, 1 if kind == "pointwise" else 3, stride)


def _amounts(layer: Layer, batch: int) -> tuple[float, ...]:
    """What the five costs of a `LayerCost` are multiplied with."""
    return (1.0, layer.multiply_adds * batch, layer.inputs * batch, layer.outputs * batch, layer.weights)


def _nonnegative(matrix: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the least-squares solution without negative numbers: the best over all sets of columns, which are few."""
    columns, best, error = matrix.shape[1], np.zeros(matrix.shape[1]), math.inf
    for size in range(1, columns + 1):
        for chosen in map(list, itertools.combinations(range(columns), size)):
            part = np.linalg.lstsq(matrix[:, chosen], target, rcond=None)[0]
            distance = float(np.linalg.norm(matrix[:, chosen] @ part - target))
            if (part >= 0).all() and distance < error:
                best, error = np.zeros(columns), distance
                best[chosen] = part
    return best


def _bandwidth(rounds: int) -> float:
    """10⁹ bytes per second that a copy reads and writes, of a tensor that no cache of one core holds."""
    source, target = torch.ones(2**24), torch.empty(2**24)
    (seconds,) = fastest([lambda: target.copy_(source)], rounds=rounds)
    return 2 * source.nbytes / float(seconds) / 1e9


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
