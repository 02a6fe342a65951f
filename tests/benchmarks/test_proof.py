"""The proof counts what differs, and the accuracy of either side."""

import numpy as np
import torch

from benchmarks.deploy.proof import counted, summed, table


def moved(x):
    """A runtime that returns its inputs, of which one is smaller by two."""
    y = x.clone()
    y[0, 0] -= 2
    return y


def test_logits_and_accuracies_are_counted_for_every_runtime():
    batches, labels = [torch.eye(3), torch.eye(3)[:2]], np.array([0, 1, 2, 0, 2])
    expected = np.concatenate(batches)
    found = counted(lambda x: x, batches, expected, labels)
    assert (found["pictures"], found["outputs"], found["differing"]) == (5, 15, 0)
    assert found["hits"] == found["attached_hits"] == 4
    found = counted(moved, batches, expected, labels)
    assert (found["differing"], found["hits"], found["attached_hits"]) == (2, 2, 4)


def test_chunks_are_summed_and_printed():
    chunk = {"words": 3, "runtime": "ORT", "first": 0, "pictures": 10, "outputs": 100, "differing": 0, "hits": 5}
    chunk |= {"attached_hits": 6, "processor_seconds": 0.5, "packed_bytes": 7}
    lines = summed([chunk, {**chunk, "first": 10, "differing": 1}, {**chunk, "runtime": "packed"}])
    assert [(line["runtime"], line["pictures"], line["differing"]) for line in lines] == [
        ("ORT", 20, 1),
        ("packed", 10, 0),
    ]
    printed = table(lines)
    assert "| 3 bits | 60.00% | 50.00%, 0 of 100 | 50.00%, 1 of 200 | – | – | – |" in printed
    assert printed.endswith("Together 1 of 300 logits differ.")
