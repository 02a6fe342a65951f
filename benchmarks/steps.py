"""Training steps at adaptive precision against float32 steps."""

from collections.abc import Iterator

import numpy as np

import adapt
from benchmarks import peers
from benchmarks.bench import LOOKBACK, Bench, runnable
from benchmarks.networks import MLP, Training, adaptive, plain
from benchmarks.table import Row
from benchmarks.timing import interleave, ratio, repeated

STEPS_PER_ROUND = 5

TARGETS = {"resnet20": (1.03, 1.10), "alexnet": (1.03, 1.10), "mlp": (1.10, 1.10)}
"""Of a step with weights quantised, and with activations and errors too."""


def steps(bench: Bench) -> Iterator[Row]:
    """A training step with weights only, and with activations and errors, at AdaPT's precision / a float32 step."""
    for network in bench.sizes.networks:
        target = TARGETS.get(network.name, (None, None))
        batches = network.batches(bench.sizes.batch, bench.device)
        own = {
            "float32": plain(network, batches),
            "AdaPT": adaptive(network, batches),
            "AdaPT, activations": adaptive(network, batches, activations="layer", quantize_errors=True),
        }
        for training in own.values():
            repeated(training, LOOKBACK + STEPS_PER_ROUND)()
        seen = {name: training.controller.step for name, training in own.items() if training.controller is not None}
        calls = {name: repeated(training, STEPS_PER_ROUND) for name, training in own.items()}
        window = LOOKBACK // STEPS_PER_ROUND
        times = interleave(calls, rounds=bench.sizes.windows * window, clock=bench.clock)

        others: dict[str, Training | str] = {
            "float32": own["float32"],
            "QPyTorch": peers.qpytorch(network, batches, activations=False),
            "QPyTorch, activations": peers.qpytorch(network, batches, activations=True),
            "brevitas W8A8": peers.brevitas(network, batches),
        }
        variants, missing = runnable(others)
        for training in variants.values():
            repeated(training, 2)()
        peer_times = interleave(variants, rounds=bench.sizes.peer_rounds, clock=bench.clock)
        found = {name: ratio(peer_times, name, "float32") for name in variants if name != "float32"} | missing
        what = (
            "step / float32 step with `SGD(fused=True)`, channels-last" if network is not MLP else "step / float32 step"
        )
        milliseconds = 1e3 * float(np.median(times["float32"])) / STEPS_PER_ROUND
        for name, limit, compared in (
            ("AdaPT", target[0], {"QPyTorch": found["QPyTorch"]}),
            (
                "AdaPT, activations",
                target[1],
                {"QPyTorch": found["QPyTorch, activations"], "brevitas W8A8": found["brevitas W8A8"]},
            ),
        ):
            controller = own[name].controller
            assert controller is not None
            yield Row(
                f"{'activations' if name != 'AdaPT' else 'weights'}-{network.name}",
                f"{network.name}: {'weights, activations and errors' if name != 'AdaPT' else 'weights-only'}, {what}",
                ratio(times, name, "float32", window=window),
                target=limit,
                peers=compared,
                note=f"float32 step {milliseconds:.1f} ms, batch {bench.sizes.batch}; "
                f"{_switches(controller, seen[name]):.2f} switches of a layer in {LOOKBACK} steps",
            )


def _switches(controller: adapt.Controller, first: int) -> float:
    """How often a layer switched in 25 of the steps after the `first`."""
    divergence = controller.trace.divergence[first:]
    switched = (divergence[1:] != divergence[:-1]) & ~np.isnan(divergence[1:])
    return LOOKBACK * float(switched.mean())
