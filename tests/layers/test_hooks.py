import copy
import gc
import pickle

import pytest
import torch

from adapt.layers.hooks import WeakHook, with_input


class Listener:
    def __init__(self):
        self.heard = []

    def hear(self, *args):
        self.heard.append(args)


def test_it_calls_the_method_with_all_arguments():
    listener = Listener()
    assert WeakHook(listener.hear)("module", ("inputs",)) is None
    assert listener.heard == [("module", ("inputs",))]


def test_it_does_not_keep_the_methods_object_alive():
    listener = Listener()
    heard, hook = listener.heard, WeakHook(listener.hear)
    del listener
    gc.collect()
    hook("module")
    assert heard == []


def test_copies_do_nothing():
    listener = Listener()
    hook = WeakHook(listener.hear)
    for twin in (copy.copy(hook), copy.deepcopy(hook), pickle.loads(pickle.dumps(hook))):
        assert isinstance(twin, WeakHook)
        twin("module")
    assert listener.heard == []


def test_it_is_not_in_the_way_of_a_compiler():
    listener = Listener()
    hook = WeakHook(listener.hear)

    @torch.compile(backend="eager", fullgraph=True)
    def function(x):
        hook(x)
        return x + 1

    assert function(torch.zeros(1)).item() == 1
    assert listener.heard == []


ONE, TWO = torch.ones(2), torch.zeros(2)


@pytest.mark.parametrize(
    ("args", "kwargs", "expected"),
    [
        ((1, 2), {"a": 3}, ((-1, 2), {"a": 3})),
        ((1, 2), None, (-1, 2)),
        ((), {"output_size": ONE, "input": TWO}, ((), {"output_size": ONE, "input": -TWO})),
        ((), {"scale": 3, "hidden_states": ONE, "other": TWO}, ((), {"scale": 3, "hidden_states": -ONE, "other": TWO})),
        ((), {"scale": 3}, None),
        ((), {}, None),
        ((), None, None),
    ],
)
def test_the_input_is_found_among_arguments_and_keywords(args, kwargs, expected):
    found = with_input(args, kwargs, lambda x: -x)
    assert str(found) == str(expected)
