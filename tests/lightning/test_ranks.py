"""Several processes train in Lightning as one does on the combined batch."""

import pytest
import torch

import adapt
from tests.lightning.ranks import EPOCHS, outcome, train
from tests.processes import LIGHTNING, python

PROCESSES = 2

TOLERANCE = 2e-6
"""The mean over the parts of a batch rounds in another order than the mean over the batch."""


@pytest.fixture(scope="module", params=["forked", pytest.param("started by Lightning", marks=pytest.mark.long)])
def folder(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("ranks")
    options = ["--fork"] if request.param == "forked" else []
    done = python("-m", "tests.lightning.ranks", folder, PROCESSES, *options, imported=LIGHTNING)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def read(folder, name):
    return [torch.load(folder / f"{name}_{rank}.pt", weights_only=True) for rank in range(PROCESSES)]


def assert_same(found, expected, tolerance=0.0):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


def test_the_ranks_agree_bit_for_bit(folder):
    first, second = read(folder, "whole")
    assert_same(first, second)
    assert (first["word_length"][1:] != first["word_length"][:-1]).any()


def test_they_train_as_one_process_on_the_combined_batch(folder, tmp_path):
    callback, _ = train(tmp_path, 1)
    assert_same(read(folder, "whole")[0], outcome(callback), TOLERANCE)


def test_a_resumed_run_is_the_same(folder):
    for whole, resumed in zip(read(folder, "whole"), read(folder, "resumed"), strict=True):
        assert_same(resumed, whole)


def test_one_process_logs_and_saves(folder):
    assert len(adapt.Trace.load(next(folder.rglob("trace.npz")))) == 6 * EPOCHS
    assert len(list(folder.rglob("metrics.csv"))) == 1
