"""Steps whose products run at reduced precision, against float32 steps."""

import inspect
from collections.abc import Iterator

import adapt
from benchmarks.bench import Bench, runnable
from benchmarks.networks import Network, Training, adaptive, plain
from benchmarks.peers import Batches
from benchmarks.table import Row
from benchmarks.timing import interleave, ratio, repeated

TARGETS = {"resnet20": 0.62, "alexnet": 0.56}


def execution(bench: Bench) -> Iterator[Row]:
    """A step that runs its products at reduced precision / a float32 step, and bfloat16 autocast beside it."""
    for network in bench.sizes.networks:
        batches = network.batches(bench.sizes.batch, bench.device)
        variants, missing = runnable(
            {
                "float32": plain(network, batches),
                "reduced": reduced(network, batches),
                "bf16 autocast": plain(network, batches, autocast=True),
            }
        )
        for training in variants.values():
            repeated(training, 3)()
        times = interleave(variants, rounds=bench.sizes.peer_rounds, clock=bench.clock)
        yield Row(
            f"execution-{network.name}",
            f"{network.name}: step with reduced-precision execution / float32 channels-last step",
            missing["reduced"] if "reduced" in missing else ratio(times, "reduced", "float32"),
            target=TARGETS.get(network.name),
            peers={"bf16 autocast": ratio(times, "bf16 autocast", "float32")},
        )


def reduced(network: Network, batches: Batches) -> Training | str:
    """Training at adaptive precision whose products run in the type that the layer's word length fits."""
    if "execution" not in inspect.signature(adapt.attach).parameters:
        return "not available"
    return adaptive(network, batches, execution="reduced")
