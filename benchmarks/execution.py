"""Steps whose products run at reduced precision, against float32 steps."""

from collections.abc import Callable, Iterator

import adapt
from benchmarks.bench import Bench
from benchmarks.networks import adaptive, plain
from benchmarks.table import Row
from benchmarks.timing import interleave, ratio, repeated

EIGHT_BITS = adapt.Fixed(adapt.Precision(8, 6), normalize_gradients=True)
"""Words that fit into bfloat16, as those of the paper's settings do not."""

TARGETS = {"resnet20": 0.62, "alexnet": 0.56}


def execution(bench: Bench) -> Iterator[Row]:
    """A step at 8 bits with its products in bfloat16, over a float32 step; bfloat16 autocast for comparison."""
    for network in bench.sizes.networks:
        batches = network.batches(bench.sizes.batch, bench.device)
        variants: dict[str, Callable[[], object]] = {
            "float32": plain(network, batches),
            "reduced": adaptive(network, batches, policy=EIGHT_BITS, execution="bfloat16"),
            "bf16 autocast": plain(network, batches, autocast=True),
        }
        for training in variants.values():
            repeated(training, 3)()
        times = interleave(variants, rounds=bench.sizes.peer_rounds, clock=bench.clock)
        yield Row(
            f"execution-{network.name}",
            f"{network.name}: step with reduced-precision execution / float32 channels-last step",
            ratio(times, "reduced", "float32"),
            target=TARGETS.get(network.name),
            peers={"bf16 autocast": ratio(times, "bf16 autocast", "float32")},
        )
