"""Training steps at adaptive precision compared with float32 steps."""

from collections.abc import Iterator, Mapping

import numpy as np

import adapt
from benchmarks import peers
from benchmarks.bench import LOOKBACK, Bench, runnable
from benchmarks.networks import MLP, Network, Training, adaptive, plain
from benchmarks.peers import Batches
from benchmarks.table import Measured, Row
from benchmarks.timing import Ratio, calls_for, interleave, ratio, repeated

SHORT = 5
"""Steps of one variant in a round. If 25 steps of a network fit into QUICK seconds, a round has all 25: a change of
variant costs time, because the cache holds the other's tensors, and that would count as the variant's own."""
QUICK = 1.0
TARGETS = {"resnet20": (1.03, 1.10), "alexnet": (1.03, 1.10), "mlp": (1.10, 1.10)}
"""For a step with quantised weights, and for one with quantised weights, activations and errors."""


def steps(bench: Bench) -> Iterator[Row]:
    """A training step at AdaPT's precision, weights only and with activations and errors, over a float32 step."""
    for network in bench.sizes.networks:
        batches = network.batches(bench.sizes.batch, bench.device)
        own = {
            "float32": plain(network, batches),
            "weights": adaptive(network, batches),
            "activations": adaptive(network, batches, activations="layer", quantize_errors=True),
        }
        milliseconds, ratios, switches = _windows(own, bench)
        others = _peers(network, own["float32"], batches, bench)
        baseline = "float32 step" if network is MLP else "float32 step with `SGD(fused=True)`, channels-last"
        limits = TARGETS.get(network.name, (None, None))
        for key, what, limit, names in (
            ("weights", "weights-only", limits[0], ("QPyTorch",)),
            ("activations", "weights, activations and errors", limits[1], ("QPyTorch, all", "brevitas W8A8")),
        ):
            yield Row(
                f"{key}-{network.name}",
                f"{network.name}: {what}, AdaPT step / {baseline}",
                ratios[key],
                target=limit,
                peers={name.removesuffix(", all"): others[name] for name in names},
                note=f"float32 step {milliseconds:.1f} ms, batch {bench.sizes.batch}; "
                f"{switches[key]:.2f} switches of a layer in {LOOKBACK} steps",
            )


def _windows(own: Mapping[str, Training], bench: Bench) -> tuple[float, dict[str, Ratio], dict[str, float]]:
    """Milliseconds of a float32 step, the ratios to it, and how often a layer switched in 25 of the timed steps."""
    for training in own.values():
        repeated(training, LOOKBACK + SHORT)()
    adapting = {name: training for name, training in own.items() if training.controller is not None}
    first = {name: training.controller.step for name, training in adapting.items()}  # type: ignore[union-attr]
    quick = calls_for(own["float32"], seconds=QUICK, clock=bench.clock) >= LOOKBACK
    in_round = LOOKBACK if quick else SHORT
    rounds = bench.sizes.windows * (4 if quick else LOOKBACK // SHORT)
    calls = {name: repeated(training, in_round) for name, training in own.items()}
    times = interleave(calls, rounds=rounds, clock=bench.clock)
    return (
        1e3 * float(np.median(times["float32"])) / in_round,
        {name: ratio(times, name, "float32", window=LOOKBACK // in_round) for name in adapting},
        {name: _switches(training.controller, first[name]) for name, training in adapting.items()},
    )


def _peers(network: Network, baseline: Training, batches: Batches, bench: Bench) -> dict[str, Measured]:
    """Steps of other software over float32 steps."""
    variants, missing = runnable(
        {
            "float32": baseline,
            "QPyTorch": peers.qpytorch(network, batches, activations=False),
            "QPyTorch, all": peers.qpytorch(network, batches, activations=True),
            "brevitas W8A8": peers.brevitas(network, batches),
        }
    )
    for training in variants.values():
        repeated(training, 2)()
    times = interleave(variants, rounds=bench.sizes.peer_rounds, clock=bench.clock)
    return {name: ratio(times, name, "float32") for name in variants} | missing


def _switches(controller: adapt.Controller | None, first: int) -> float:
    """How often a layer switched in 25 steps, on average over the steps after the `first`."""
    assert controller is not None
    divergence = controller.trace.divergence[first:]
    switched = (divergence[1:] != divergence[:-1]) & ~np.isnan(divergence[1:])
    return LOOKBACK * float(switched.mean())
