"""Several processes learn the same formats, those of one process on the combined batch."""

import subprocess
import sys

import pytest
import torch

from tests.learned import ranks
from tests.learned.ranks import PROCESSES, outcome, train, train_aqt
from tests.processes import ROOT, together

TOLERANCE = 2e-4
"""The mean over the parts of a batch rounds in another order."""


def forked(folder):
    together(PROCESSES, ranks.run, folder)


def by_torchrun(folder):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(PROCESSES), "--standalone"]
    command += ["-m", "tests.learned.ranks", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module", params=[forked, pytest.param(by_torchrun, marks=pytest.mark.long)])
def folder(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("ranks")
    request.param(folder)
    return folder


def read(folder, name):
    return [torch.load(folder / f"{name}_{rank}.pt", weights_only=True) for rank in range(PROCESSES)]


def test_the_ranks_agree_bit_for_bit(folder):
    first, second = read(folder, "whole")
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert (first["widths"][1:] != first["widths"][:-1]).any()


def test_a_resumed_run_is_the_same(folder):
    for whole, resumed in zip(read(folder, "whole"), read(folder, "resumed"), strict=True):
        torch.testing.assert_close(resumed, whole, rtol=0, atol=0)


def test_weights_learn_the_formats_of_one_process_on_the_combined_batch(folder):
    alone = outcome(train()[0])
    torch.testing.assert_close(read(folder, "whole")[0], alone, rtol=TOLERANCE, atol=TOLERANCE)


def test_aqt_averages_the_largest_magnitudes_over_all_ranks(folder):
    first, second = read(folder, "aqt")
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(first, outcome(train_aqt()), rtol=TOLERANCE, atol=TOLERANCE)


def test_sharded_weights_are_refused(folder):
    assert "lies on several processes" in (folder / "refused_0.txt").read_text()
