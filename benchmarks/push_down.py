"""PushDown over a whole network, relative to the training steps between two switches."""

from collections.abc import Iterator

from torch import Tensor

import adapt
from benchmarks import peers
from benchmarks.bench import LOOKBACK, Bench, many_calls
from benchmarks.networks import plain
from benchmarks.table import Row
from benchmarks.timing import ratio, repeated

TARGETS = {"resnet20": 0.1, "alexnet": 0.5, "mlp": 2.0}
"""Percent of a float32 step."""


def push_down(bench: Bench) -> Iterator[Row]:
    """PushDown over all layers, in percent of 25 float32 steps."""
    for network in bench.sizes.networks:
        training = plain(network, network.batches(bench.sizes.batch, bench.device))
        weights = [parameter.detach() for parameter in training.model.parameters() if parameter.ndim >= 2]
        finest, tolerance = adapt.AdaPT().resolution[1], adapt.AdaPT().kl_tolerance

        def exact(weights: list[Tensor] = weights, r: int = finest, epsilon: float = tolerance) -> None:
            for weight in weights:
                adapt.switching.push_down(weight, resolution=r, tolerance=epsilon)

        def usual(weights: list[Tensor] = weights, r: int = finest, epsilon: float = tolerance) -> None:
            for weight in weights:
                peers.push_down_by_histc(weight, r, epsilon)

        repeated(training, 3)()
        times = many_calls({"step": training, "AdaPT": exact, "histc": usual}, bench, rounds=bench.sizes.peer_rounds)
        share = 100 / LOOKBACK
        yield Row(
            f"push-down-{network.name}",
            f"{network.name}: PushDown over all layers, amortised at lookback {LOOKBACK}, share of a float32 step",
            ratio(times, "AdaPT", "step").scaled(share),
            unit="%",
            target=TARGETS.get(network.name),
            peers={"histc": ratio(times, "histc", "step").scaled(share)},
            note=f"{finest} bins, the most that AdaPT() takes",
        )
