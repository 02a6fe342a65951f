"""Writes the checkpoint that later versions of the package must still read.

    python -m tests.reliability.earlier tests/reliability/checkpoints/version_1.pt

Gradients and losses are small multiples of powers of two and no matrix is multiplied, so that every machine computes
the same bits from them.
"""

import copy
import sys

import torch
from torch import nn

import adapt

SAVED, FINISHED = 23, 60


class Run:
    """A run whose gradients follow a pattern instead of a loss."""

    def __init__(self):
        self.model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
        for index, parameter in enumerate(self.model.parameters()):
            parameter.data = pattern(parameter.shape, index) / 64
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=2.0**-7, momentum=0.5)
        self.controller = adapt.attach(
            self.optimizer,
            self.model,
            adapt.AdaPT(lookback=(3, 8), resolution=(8, 20), normalize_gradients=False),
            quantize_biases=True,
            seed=3,
        )
        self.done = 0

    def train(self, until):
        """Go on to step `until`."""
        for step in range(self.done, until):
            for index, parameter in enumerate(self.model.parameters()):
                parameter.grad = pattern(parameter.shape, 10 * step + index) / 256
            self.controller.observe((step * 29 % 31) / 16)
            self.optimizer.step()
        self.done = until
        return self

    def outcome(self):
        """Plain values to compare."""
        trace = self.controller.trace
        return {
            "weights": {name: p.detach().clone() for name, p in self.model.named_parameters()},
            "masters": {name: m.clone() for name, m in self.controller.masters.items()},
            "word_length": torch.from_numpy(trace.word_length.copy()),
            "fraction_length": torch.from_numpy(trace.fraction_length.copy()),
            "nonzero": torch.from_numpy(trace.nonzero.copy()),
            "resolution": torch.from_numpy(trace.resolution.copy()),
        }


def pattern(shape, seed):
    """Whole numbers from −63 to 63, float32 of `shape`."""
    positions = torch.arange(shape.numel(), dtype=torch.int64)
    return (((positions + 1) * (seed + 3) * 2654435761 >> 7) % 127 - 63).to(torch.float32).view(shape)


def main(path):
    """Save a run after SAVED steps together with what it came to after FINISHED."""
    run = Run().train(SAVED)
    # A state dict shares the tensors that training goes on with.
    state = copy.deepcopy({"model": run.model.state_dict(), "optimizer": run.optimizer.state_dict()})
    adapt.save({**state, "expected": run.train(FINISHED).outcome()}, path)


if __name__ == "__main__":
    main(*sys.argv[1:])
