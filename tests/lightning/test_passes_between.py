"""Passes in another mode between forward and backward in training_step: as harmless as passes of a copy."""

import contextlib
import copy
import itertools

import pytest
import torch
from torch.nn import functional as F

import adapt
from adapt.layers import frozen_rounding
from adapt.learned import Budget
from adapt.lightning import LearnedBitwidth
from tests.covering import covering
from tests.lightning.modules import Classifier, fit, precision

VIEWS = {"eval": "evaluation", "evaluation_weights": "evaluation", "master_weights": "masters"}


def two_optimizers(module):
    return [torch.optim.SGD(module.net[0].parameters(), lr=0.05), torch.optim.Adam(module.net[2].parameters())]


class Consistent(Classifier):
    """Trains on what another pass says, which is made after the first forward pass, by itself or by a copy."""

    def __init__(self, how, by_copy, *, with_graph, automatic, **options):
        super().__init__(**options)
        self.how, self.by_copy, self.with_graph = how, by_copy, with_graph
        self.automatic_optimization = automatic
        self.callback = None

    def training_step(self, batch, index):
        outputs = self(batch[0])
        with torch.set_grad_enabled(self.with_graph):
            other = (self.other_by_copy if self.by_copy else self.other)(batch[0].flip(0))
        loss = F.cross_entropy(outputs, batch[1]) + F.mse_loss(outputs, other)
        if self.automatic_optimization:
            return loss
        optimizers = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        self.manual_backward(loss)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return None

    def other(self, inputs):
        with contextlib.ExitStack() as contexts:
            if self.how == "eval":
                self.net.eval()
            for controller in self.callback.controllers:
                if self.how != "eval":
                    contexts.enter_context(getattr(controller, self.how)())
            outputs = self.net(inputs)
            self.net.train()
        return outputs

    def other_by_copy(self, inputs):
        twin, weights, is_rounded = copy.deepcopy(self.net), {}, VIEWS[self.how] == "evaluation"
        for controller in self.callback.controllers:
            formats = controller.formats
            for name, master in controller.masters.items():
                weights[name.removeprefix("net.")] = formats[name].quantize(master) if is_rounded else master.clone()
            if is_rounded:
                frozen_rounding.keep(torch.nn.ModuleDict({"net": twin}), formats)
        twin.load_state_dict(weights, strict=False)
        outputs = twin(inputs)
        if self.with_graph:
            # The copy's gradients are added to the model's own.
            for mine, other in zip(self.net.parameters(), twin.parameters(), strict=True):
                other.register_hook(lambda gradient, mine=mine: mine.backward(gradient))
        return outputs


CALLBACKS = {
    "stochastic": lambda: precision(adapt.Fixed(adapt.Precision(6, 4))),
    "nearest": lambda: precision(adapt.Fixed(adapt.Precision(6, 4)), rounding="nearest"),
    "activations": lambda: precision(adapt.Fixed(adapt.Precision(6, 4)), activations="range"),
    "learned": lambda: LearnedBitwidth(weight_budget=Budget(bits=4)),
}
WAYS = {
    "automatic": {"automatic": True},
    "accumulating": {"automatic": True, "accumulate_grad_batches": 2},
    "manual": {"automatic": False, "max_epochs": -1, "max_steps": 6},
    "two optimizers": {"automatic": False, "configure": two_optimizers},
}
CASES = [
    *itertools.product(["stochastic"], WAYS, VIEWS, [False, True]),
    *itertools.product(["nearest", "learned"], ["automatic", "manual"], ["eval", "master_weights"], [False, True]),
    *itertools.product(["activations"], ["automatic", "manual"], VIEWS, [False]),
]


# Every pair of callback, way, view and graph; the other combinations are long.
QUICK = covering([dict(enumerate(case)) for case in CASES], 2)


def trained(make, how, by_copy, with_graph, *, automatic, configure=None, **options):
    module = Consistent(how, by_copy, with_graph=with_graph, automatic=automatic)
    module.configure = configure or module.configure
    module.callback = make()
    fit(module, module.callback, **{"max_epochs": 1, **options})
    return [controller.masters for controller in module.callback.controllers]


@pytest.mark.parametrize(
    ("callback", "way", "how", "with_graph"),
    [pytest.param(*case, marks=() if i in QUICK else pytest.mark.long) for i, case in enumerate(CASES)],
)
def test_the_run_is_that_in_which_a_copy_made_the_pass(callback, way, how, with_graph):
    runs = [trained(CALLBACKS[callback], how, by_copy, with_graph, **WAYS[way]) for by_copy in (False, True)]
    for found, expected in zip(*runs, strict=True):
        assert found.keys() == expected.keys()
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6)
