"""Steps that learn the formats of weights and activations, against float32 steps."""

from collections.abc import Iterator

from torch import Tensor

from adapt.learned import Budget, Phases, attach, attach_lsq
from benchmarks.bench import Bench
from benchmarks.networks import Trainable, Training, plain, sgd
from benchmarks.table import Row
from benchmarks.timing import interleave, ratio, repeated

UPDATE = 20
"""Steps between two updates of the formats; a round times this many steps, with their update."""

TARGETS = {"resnet20": 1.35}


def learned(bench: Bench) -> Iterator[Row]:
    """A step with learned widths of weights and activations over a float32 step; LSQ for comparison."""
    for network in bench.sizes.networks:
        batches = network.batches(bench.sizes.batch, bench.device)
        model = network.build(bench.device)
        optimizer = sgd(model)
        attach(
            optimizer,
            model,
            [batches[0][0]],
            weight_budget=Budget(bits=4),
            activation_budget=Budget(bits=4),
            # No pre-training: the learning phase, in which all formats have gradients and move, is the most costly one.
            phases=Phases(0, 10**6, 0),
            update_every=UPDATE,
        )
        variants = {
            "float32": plain(network, batches),
            "learned": Training(model, optimizer, batches),
            "LSQ": _lsq(network, batches),
        }
        for training in variants.values():
            repeated(training, 2)()
        calls = {name: repeated(training, UPDATE) for name, training in variants.items()}
        times = interleave(calls, rounds=max(bench.sizes.windows // 2, 1), clock=bench.clock)
        yield Row(
            f"learned-{network.name}",
            f"{network.name}: step with learned widths of weights and activations / float32 channels-last step",
            ratio(times, "learned", "float32"),
            target=TARGETS.get(network.name),
            peers={"LSQ, here": ratio(times, "LSQ", "float32")},
        )


def _lsq(network: Trainable, batches: list[tuple[Tensor, Tensor]]) -> Training:
    model = network.build(batches[0][0].device)
    optimizer = sgd(model)
    attach_lsq(optimizer, model, [batches[0][0]], weight_bits=4, activation_bits=4)
    return Training(model, optimizer, batches)
