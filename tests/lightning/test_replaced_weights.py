"""Weights that a module copies into itself when training starts: its run is that of a module which had them before."""

import pytest
import torch

import adapt
from adapt.learned import Budget
from adapt.lightning import AQT, LSQ, AdaptivePrecision, LearnedBitwidth
from tests.lightning.modules import Classifier, loader, trainer

CALLBACKS = {
    "compact": lambda: AdaptivePrecision(adapt.AdaPT.compact()),
    "learned widths": lambda: LearnedBitwidth(Budget(bits=4)),
    "LSQ": lambda: LSQ(3),
    "AQT": AQT,
}


def large():
    with torch.no_grad():
        return [40 * parameter for parameter in Classifier(seed=5).parameters()]


class Copying(Classifier):
    """Copies weights into itself: never, before the trainer, or in a hook, by one of two ways."""

    def __init__(self, when=None, hidden=False):
        super().__init__()
        self.when, self.hidden = when, hidden
        if when == "at once":
            self.copy()

    def copy(self):
        with torch.no_grad():
            for parameter, weight in zip(self.parameters(), large(), strict=True):
                (parameter.data if self.hidden else parameter).copy_(weight)

    def on_train_start(self):
        if self.when == "on_train_start":
            self.copy()

    def on_train_batch_start(self, batch, index):
        if self.when == "on_train_batch_start" and self.global_step == 0:
            self.copy()


@pytest.mark.covering(1)
@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("when", ["on_train_start", "on_train_batch_start"])
@pytest.mark.parametrize("make", CALLBACKS.values(), ids=CALLBACKS)
def test_weights_that_are_copied_in_before_the_first_step(make, when, hidden, recwarn):
    runs = []
    for module in (Copying("at once"), Copying(when, hidden)):
        callback = make()
        trainer(callback, max_epochs=1).fit(module, loader(), loader(2))
        runs.append(callback.controllers[0])
    assert repr(runs[1].formats) == repr(runs[0].formats)
    assert all(torch.equal(runs[1].masters[name], master) for name, master in runs[0].masters.items())
    assert not any("still fit the earlier weights" in str(warning.message) for warning in recwarn)
