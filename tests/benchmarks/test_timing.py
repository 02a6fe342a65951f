import numpy as np
import pytest
import torch

from benchmarks.timing import Ratio, calls_for, clock_for, interleave, ratio, repeated


class _Ticks:
    """A clock that variants advance by hand."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def work(self, seconds):
        def run():
            self.now += seconds

        return run


def test_a_round_runs_every_variant_once_in_turns():
    order = []
    clock = _Ticks()
    times = interleave({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3, clock=clock)
    assert order == ["a", "b"] * 3
    assert {name: taken.shape for name, taken in times.items()} == {"a": (3,), "b": (3,)}


def test_each_variant_gets_its_own_time():
    clock = _Ticks()
    times = interleave({"a": clock.work(1.0), "b": clock.work(3.0)}, rounds=4, clock=clock)
    assert times["a"].tolist() == [1.0] * 4
    assert times["b"].tolist() == [3.0] * 4


def test_the_ratio_is_that_of_the_medians_and_its_spread_that_of_neighbours():
    times = {"a": np.array([2.0, 4.0, 6.0, 8.0, 100.0]), "b": np.array([1.0, 2.0, 2.0, 2.0, 10.0])}
    assert ratio(times, "a", "b") == Ratio(3.0, 2.0, 4.0)


def test_a_cost_of_every_fifth_round_is_in_every_window():
    dear = np.array([1.0, 1.0, 1.0, 1.0, 6.0] * 3)
    assert ratio({"a": dear, "b": np.ones(15)}, "a", "b", window=5) == Ratio(2.0, 2.0, 2.0)
    assert ratio({"a": dear, "b": np.ones(15)}, "a", "b").value == 1.0


def test_rounds_that_fill_no_window_are_left_out_and_none_is_an_error():
    times = {"a": np.array([1.0, 1.0, 7.0]), "b": np.ones(3)}
    assert ratio(times, "a", "b", window=2).value == 1.0
    with pytest.raises(ValueError, match="window must be at most the 3 rounds"):
        ratio(times, "a", "b", window=4)


def test_a_short_call_is_repeated_until_a_round_is_long_enough():
    clock = _Ticks()
    assert calls_for(clock.work(0.25), seconds=2.0, clock=clock) == 8
    assert calls_for(clock.work(5.0), seconds=2.0, clock=clock) == 1
    calls = []
    repeated(lambda: calls.append(0), 7)()
    assert len(calls) == 7


def test_one_thread_is_timed_by_the_processor_and_several_by_the_wall():
    cpu = torch.device("cpu")
    assert clock_for(cpu, 1)[0] == "processor time"
    assert clock_for(cpu, 2)[0] == "wall clock"


def test_a_ratio_can_be_read_in_another_unit():
    assert Ratio(0.5, 0.25, 1.0).scaled(4) == Ratio(2.0, 1.0, 4.0)
