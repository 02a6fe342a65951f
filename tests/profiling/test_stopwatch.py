import os

import torch

from adapt.profiling.stopwatch import fastest, one_core


def busy(count):
    return lambda: sum(range(count))


def test_twice_the_work_takes_about_twice_as_long():
    short, long = fastest([busy(20_000), busy(40_000)], rounds=10)
    assert 1.5 < long / short < 2.7


def test_one_core_is_pinned_and_let_go():
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    with one_core():
        assert len(os.sched_getaffinity(0)) == 1
        assert torch.get_num_threads() == 1
    assert (os.sched_getaffinity(0), torch.get_num_threads()) == (cores, threads)
