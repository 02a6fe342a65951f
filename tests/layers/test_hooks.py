import copy
import gc
import pickle

import pytest
import torch
from torch import nn

from adapt.layers.hooks import WeakHook, register_first, with_input


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


def test_the_order_of_hooks_is_also_that_of_the_dict_below():
    module, called = nn.Linear(2, 2), []
    module.register_forward_pre_hook(lambda *_: called.append("theirs"))
    handles = [
        register_first(module.register_forward_pre_hook, lambda *_, name=name: called.append(name)) for name in "ab"
    ]
    module(torch.ones(1, 2))
    assert called == ["b", "a", "theirs"]
    hooks = module._forward_pre_hooks
    assert list(dict.keys(hooks)) == list(hooks), "Dynamo before torch 2.13 looks hooks up by their place in the dict"
    handles[1].remove()
    module(torch.ones(1, 2))
    assert called[3:] == ["a", "theirs"]
