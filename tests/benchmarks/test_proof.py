"""The proof opens every exported form, and counts what differs and the accuracy of either side."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.deploy.proof import RUNTIMES, counted, opened, summed, table, tuned, write
from recipes.same_bits.start import Start


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


@pytest.mark.parametrize("bits", [None, pytest.param(4, marks=pytest.mark.long)])
def test_every_form_is_compared_with_logits_that_the_attached_model_computed_once(tmp_path, bits):
    for module in ("onnx", "onnxscript", "onnxruntime", "qonnx", "safetensors", "zstandard"):
        pytest.importorskip(module)
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    start = Start("tiny", nn.Sequential(*layers), torch.zeros(3), torch.ones(3), natural=True)
    batches = [(torch.randn(8, 3, 9, 9), torch.arange(8) % 3) for _ in range(4)]
    pictures, labels = [x for x, _ in batches], np.concatenate([y.numpy() for _, y in batches])
    fresh = copy.deepcopy(start)
    write(tuned(start, batches, bits, 3), tmp_path, pictures)
    start.model.forward = None  # what is compared with lies in the folder
    expected = np.load(tmp_path / "attached.npy")
    assert expected.shape == (32, 3)
    for runtime in RUNTIMES:
        found = counted(opened(runtime, tmp_path, fresh), pictures, expected, labels)
        assert (runtime, found["outputs"], found["differing"]) == (runtime, 96, 0)


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
