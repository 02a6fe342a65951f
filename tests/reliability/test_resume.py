"""A run that was stopped and resumed is the run that was not: the same weights, formats and trace, bit for bit."""

import os
import random
import signal
import time

import pytest
import torch

import adapt
from tests.processes import started
from tests.reliability import runs
from tests.reliability.runs import SETTINGS, Run, switches
from tests.training import through_a_file

torch.set_num_threads(1)
MICRO_BATCHES = 40


@pytest.mark.parametrize("every", [9, pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.parametrize("setting", SETTINGS)
def test_resuming_after_any_micro_batch_is_as_if_nothing_had_happened(setting, every):
    undisturbed = Run(setting)
    for _ in range(MICRO_BATCHES):
        undisturbed.advance()
    expected = undisturbed.digest()
    if setting != "fixed":
        assert switches(undisturbed.controller.trace) > 5, "a run that never switches would prove little"

    original, checkpoints = Run(setting), []
    for _ in range(MICRO_BATCHES):
        checkpoints.append(through_a_file(original.state()))
        original.advance()
    assert original.digest() == expected, "saving disturbed the run"

    # Odd, so that resuming in the middle of a step and between two steps take turns.
    for checkpoint in checkpoints[::every]:
        resumed = Run(setting, init=1)
        resumed.resume(checkpoint)
        while resumed.position < MICRO_BATCHES:
            resumed.advance()
        assert resumed.digest() == expected, checkpoint["position"]


@pytest.mark.parametrize("order", ["model first", "optimizer first", "optimizer alone"])
def test_the_order_of_loading_does_not_matter(order):
    original = Run("paper")
    for _ in range(22):
        original.advance()
    state, random_state = through_a_file(original.state()), torch.get_rng_state()
    for _ in range(11):
        original.advance()

    resumed = Run("paper", init=1)
    if order == "optimizer alone":
        # The biases are no layers: they come with the model alone.
        for name in ("0.bias", "3.bias", "5.bias"):
            with torch.no_grad():
                resumed.model.get_parameter(name).copy_(state["model"][name])
    loads = [lambda: resumed.model.load_state_dict(state["model"])] if order != "optimizer alone" else []
    loads.append(lambda: resumed.optimizer.load_state_dict(state["optimizer"]))
    for load in loads if order != "optimizer first" else reversed(loads):
        load()
    resumed.scheduler.load_state_dict(state["scheduler"])
    resumed.position = state["position"]
    torch.set_rng_state(random_state)
    for _ in range(11):
        resumed.advance()
    assert resumed.digest() == original.digest()


def test_going_back_in_the_same_process():
    run = Run("paper")
    for _ in range(15):
        run.advance()
    earlier = through_a_file(run.state())
    digests = []
    for _ in range(2):
        for _ in range(12):
            run.advance()
        digests.append(run.digest())
        run.resume(earlier)
        run.optimizer.zero_grad()
        run.resume(earlier)
    assert digests[0] == digests[1]


def digest_of(main, folder, *arguments, kills=0, longest=0.0, seed=0):
    """Kill the run so often at random moments, let it finish, and return its digest."""
    moments = random.Random(seed)
    for _ in range(kills):
        (folder / "started").unlink(missing_ok=True)
        process = started(main, folder, *arguments)
        while not (folder / "started").exists():
            assert process.is_alive()
            time.sleep(0.002)
        time.sleep(moments.uniform(0, longest))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "the run ended before it was killed: give it more steps"
    process = started(main, folder, *arguments)
    process.join()
    assert process.exitcode == 0
    return (folder / "digest").read_text()


def expected_digest(setting, micro_batches, monkeypatch):
    monkeypatch.setenv("ADAPT_BACKEND", "torch")
    run = Run(setting)
    for _ in range(micro_batches):
        run.advance()
    return run.digest()


def test_a_run_that_is_killed_three_times_ends_as_if_it_had_not_been(tmp_path, monkeypatch):
    expected = expected_digest("paper", 100, monkeypatch)
    assert digest_of(runs.main, tmp_path, "paper", 100, kills=3, longest=0.1) == expected


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("setting", ["paper", "algorithm 4"])
def test_a_run_that_is_killed_twenty_times_ends_as_if_it_had_not_been(tmp_path, monkeypatch, setting):
    expected = expected_digest(setting, 6000, monkeypatch)
    assert digest_of(runs.main, tmp_path, setting, 6000, kills=20, longest=1.5) == expected


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_lightning_run_that_is_killed_five_times_ends_as_if_it_had_not_been(tmp_path):
    lightning_runs = pytest.importorskip("tests.reliability.lightning_runs")
    folders = tmp_path / "whole", tmp_path / "killed"
    for folder in folders:
        folder.mkdir()
    expected = digest_of(lightning_runs.main, folders[0], 1500)
    assert digest_of(lightning_runs.main, folders[1], 1500, kills=5, longest=1.0) == expected


def test_a_kill_while_writing_leaves_the_previous_checkpoint(tmp_path):
    path = tmp_path / "checkpoint"
    adapt.save({"step": 1}, path)
    process = started(write_and_die, path)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert adapt.load(path) == {"step": 1}


def write_and_die(path):
    os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)
    adapt.save({"step": 2, "weight": torch.ones(1000)}, path)
