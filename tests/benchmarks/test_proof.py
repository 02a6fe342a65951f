"""The proof counts what differs, and the accuracy of either side."""

import torch

from adapt.export.backends import Outcome
from benchmarks.deploy.proof import compare


def network(changed: float = 0.0):
    """A backend that returns its inputs, of which one is moved, and shows a layer of twice their values."""

    def run(inputs):
        (x,) = inputs
        y = x.clone()
        y[0, 0] += changed
        return Outcome([y], {"layer": 2 * y})

    return run


def test_outputs_layers_and_accuracies_are_counted_for_every_runtime():
    batches = [(torch.eye(3), torch.arange(3)), (torch.eye(3)[:2], torch.tensor([0, 2]))]
    found = compare(network(), {"same": network(), "other": network(changed=-2.0)}, batches)
    assert found["same"]["outputs"] == found["same"]["layer_outputs"] == 15
    assert found["same"]["differing"] == found["same"]["layer_differing"] == 0
    assert found["same"]["accuracy"] == found["same"]["captured_accuracy"] == 4 / 5
    assert found["other"]["differing"] == found["other"]["layer_differing"] == 2
    assert found["other"]["accuracy"] == 2 / 5
