"""Watching a loss module or function where a framework owns the loop."""

import pytest
import torch
from torch import nn

import adapt


def run(show, steps=60):
    """Train under compact() with losses shown in some way, and return the trace."""
    torch.manual_seed(0)
    x = torch.randn(64, 8)
    y = (x[:, 0] > 0).long()
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    controller = adapt.attach(optimizer, model, adapt.AdaPT.compact(), rounding="nearest")
    criterion = nn.CrossEntropyLoss()
    observing = show(controller, criterion)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = observing(model(x), y)
        loss.backward()
        optimizer.step()
    return controller


def observed(controller, criterion):
    def call(*arguments):
        loss = criterion(*arguments)
        controller.observe(loss)
        return loss

    return call


WATCHED = {
    "module": lambda controller, criterion: controller.watch(criterion),
    "function": lambda controller, criterion: controller.watch(nn.functional.cross_entropy),
}


@pytest.mark.parametrize("way", WATCHED)
def test_a_watched_loss_is_an_observed_one(way):
    expected, controller = run(observed), run(WATCHED[way])
    assert controller.precisions == expected.precisions
    assert controller.trace.word_length.tolist() == expected.trace.word_length.tolist()
    for name, master in controller.masters.items():
        assert torch.equal(master, expected.masters[name])


def test_a_model_that_returns_its_loss_is_watched_in_training_alone():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x, y):
            logits = self.layer(x)
            return {"loss": nn.functional.cross_entropy(logits, y), "logits": logits}

    model = Model()
    controller = adapt.attach(torch.optim.SGD(model.parameters(), lr=0.1), model, adapt.AdaPT.compact())
    shown = []
    controller.observe = shown.append
    assert controller.watch(model) is model
    x, y = torch.randn(8, 4), torch.zeros(8, dtype=torch.long)
    loss = model(x, y)["loss"]
    with torch.no_grad():
        model(x, y)
    model.eval()(x, y)
    assert len(shown) == 1
    assert shown[0] is loss
    controller.detach()
    model.train()(x, y)
    assert len(shown) == 1


def test_what_cannot_be_watched_is_refused():
    model = nn.Linear(2, 2)
    controller = adapt.attach(torch.optim.SGD(model.parameters(), lr=0.1), model)
    with pytest.raises(TypeError, match="observe"):
        controller.watch(torch.tensor(1.0))
    with pytest.raises(TypeError, match="loss"):
        controller.watch(nn.CrossEntropyLoss)
    controller.detach()
    with pytest.raises(RuntimeError):
        controller.watch(nn.CrossEntropyLoss())
