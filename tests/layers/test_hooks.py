import copy
import gc
import pickle

import torch

from adapt.layers.hooks import WeakHook


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
