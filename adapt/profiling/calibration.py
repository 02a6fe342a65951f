"""Measure this processor: fit a hardware profile to timings of layers of each kind and width."""

import itertools
import math
import platform
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from adapt.perfmodel import HardwareProfile, Layer, LayerCost
from adapt.profiling.stopwatch import fastest, one_core
from adapt.profiling.workloads import Workload, runnable_widths

Times = dict[int, NDArray[np.float64]]
"""Seconds of each layer, by bits."""

KINDS = ("convolution", "pointwise", "depthwise", "linear")

_MOST_WORK, _MOST_WEIGHTS = 400_000_000, 4_000_000
"""The most multiply-adds and weights of a layer; larger ones take time and memory and show nothing new."""


def calibration_layers(kind: str, count: int, seed: int = 0) -> list[Workload]:
    """Return layers of one kind with random sizes, uniform on a logarithmic scale.

    As in real networks, channels are multiples of 16, and larger images have fewer channels.
    """
    generator = np.random.default_rng([KINDS.index(kind), seed])
    found: list[Workload] = []
    while len(found) < count:
        workload = _random_layer(kind, generator)
        layer = workload.layer()
        if layer.multiply_adds * workload.batch <= _MOST_WORK and layer.weights <= _MOST_WEIGHTS:
            found.append(workload)
    return found


def measure_processor(
    *, layers: int = 48, rounds: int = 8, progress: Callable[[str], object] = print
) -> HardwareProfile:
    """Return a profile of this processor, for one thread; takes about a minute.

    Rates are the highest that any layer reached at a width, bandwidth is that of a large copy, and costs are fitted to
    layers of random sizes. 8 bits are measured if onnx and onnxruntime are installed.

    Args:
        layers: how many layers of each kind to measure at each width.
        rounds: how often to time each.
        progress: called with a line of text that says what is being measured.
    """
    workloads = [workload for kind in KINDS for workload in calibration_layers(kind, layers)]
    progress(f"timing {len(workloads)} layers at {', '.join(map(str, runnable_widths()))} bits, {rounds} rounds")
    return fit_profile(workloads, time_layers(workloads, rounds))


def time_layers(workloads: Sequence[Workload], rounds: int) -> Times:
    """Return the seconds of every layer at every width that can be run here.

    Each round times all of them, so that a busy minute of the machine affects all alike.
    """
    widths = runnable_widths()
    with one_core():
        calls = [workload.call(bits) for bits in widths for workload in workloads]
        return dict(zip(widths, fastest(calls, rounds=rounds).reshape(len(widths), -1), strict=True))


def fit_profile(workloads: Sequence[Workload], times: Times) -> HardwareProfile:
    """Return the profile of this processor that best fits measured layers.

    Args:
        workloads: the layers, several of each kind.
        times: from `time_layers`.
    """
    layers = [workload.layer() for workload in workloads]
    batches = np.array([workload.batch for workload in workloads])
    work = np.array([layer.multiply_adds for layer in layers]) * batches
    costs: dict[str, dict[float, LayerCost]] = {}
    for kind in dict.fromkeys(layer.kind for layer in layers):
        own = [i for i, layer in enumerate(layers) if layer.kind == kind]
        described = [layers[i] for i in own]
        costs[kind] = {bits: fit_cost(described, batches[own].tolist(), taken[own]) for bits, taken in times.items()}
    rates = {bits: float((2e-12 * work / taken).max()) for bits, taken in times.items()}
    source = f"measured in one thread: {len(workloads)} layers at each width, every layer in its fastest round"
    return HardwareProfile(processor(), rates, _bandwidth(), costs, source)


def processor() -> str:
    """Return the processor's model and, if known, its widest vector instructions."""
    model, flags = platform.processor() or platform.machine(), ""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            model = value.strip() if key.strip() == "model name" else model
            flags = value if key.strip() == "flags" else flags
    except OSError:
        pass
    vectors = "AVX-512" if "avx512f" in flags else "AVX2" if "avx2" in flags else ""
    return f"{model}, {vectors}" if vectors else model


def fit_cost(layers: Sequence[Layer], batches: Sequence[int], seconds: NDArray[np.float64]) -> LayerCost:
    """Return the non-negative costs with the least sum of relative errors over measured layers.

    Args:
        layers: the layers, all of one kind.
        batches: samples at once, for each layer.
        seconds: the measured time of each.
    """
    amounts = np.array([_amounts(layer, batch) for layer, batch in zip(layers, batches, strict=True)])
    largest = amounts.max(axis=0)
    relative = amounts / largest / seconds[:, None]
    importance = np.ones(len(seconds))
    # Least squares, repeated with weights 1/|error|, minimises the sum of absolute errors, so outliers pull less.
    for _ in range(30):
        found = _nonnegative(relative * importance[:, None], importance)
        importance = (np.abs(relative @ found - 1) + 1e-3) ** -0.5
    return LayerCost(*(found / largest).tolist())


def as_toml(profile: HardwareProfile) -> str:
    """Return a profile as TOML that `HardwareProfile.load` can read."""
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


def _random_layer(kind: str, generator: np.random.Generator) -> Workload:
    def between(low: float, high: float, multiple: int = 16) -> int:
        chosen = math.exp(generator.uniform(math.log(low), math.log(high)))
        return max(round(chosen / multiple), 1) * multiple

    def one_of(*choices: int) -> int:
        return int(generator.choice(choices))

    if kind == "linear":
        return Workload(kind, between(1, 512, 1), between(64, 4096), between(64, 4096))
    batch, size = one_of(1, 1, 1, 4, 8), one_of(7, 8, 14, 16, 28, 32, 56, 112)
    inputs, outputs = (min(between(512 / size, 9000 / size), 2048) for _ in range(2))
    if kind == "pointwise":
        return Workload(kind, batch, inputs, outputs, size)
    stride = one_of(1, 1, 1, 2)
    if kind == "depthwise":
        return Workload(kind, batch, inputs, inputs, size, one_of(3, 3, 5), stride)
    return Workload(kind, batch, inputs, outputs, size, 3 if stride == 1 else one_of(1, 3, 3), stride)


def _amounts(layer: Layer, batch: int) -> tuple[float, ...]:
    """Return the factors of the five costs of a `LayerCost`."""
    return (1.0, layer.multiply_adds * batch, layer.inputs * batch, layer.outputs * batch, layer.weights)


def _nonnegative(matrix: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the non-negative least-squares solution: the best over all subsets of the few columns."""
    columns, best, error = matrix.shape[1], np.zeros(matrix.shape[1]), math.inf
    for size in range(1, columns + 1):
        for chosen in map(list, itertools.combinations(range(columns), size)):
            part = np.linalg.lstsq(matrix[:, chosen], target, rcond=None)[0]
            distance = float(np.linalg.norm(matrix[:, chosen] @ part - target))
            if (part >= 0).all() and distance < error:
                best, error = np.zeros(columns), distance
                best[chosen] = part
    return best


def _bandwidth() -> float:
    """Measure the 10⁹ bytes per second that a copy reads and writes, with a tensor too large for one core's caches."""
    source, target = torch.ones(2**24), torch.empty(2**24)
    with one_core():
        (seconds,) = fastest([lambda: target.copy_(source)])
    return 2 * source.nbytes / float(seconds) / 1e9


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
