"""What LearnedBitwidth calibrates with: the part of a batch that forward takes, or else a whole training step."""

import lightning
import pytest
import torch
import torchmetrics
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from adapt.lightning import LearnedBitwidth
from tests.lightning.modules import Classifier, loader
from tests.lightning.test_learned import FOUR, fit


class Named(torch.utils.data.Dataset):
    """Rows that are dictionaries whose names no forward knows."""

    def __init__(self):
        self.inputs, self.targets = loader().dataset.tensors

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        return {"picture": self.inputs[index], "class": self.targets[index]}


class ByName(lightning.LightningModule):
    """Takes its batches apart in training_step, logs, and keeps what it has seen."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        self.accuracy = torchmetrics.MeanMetric()
        self.seen, self.steps = [], 0

    def forward(self, x, scale):
        return self.model(x * scale)

    def training_step(self, batch):
        loss = F.cross_entropy(self(batch["picture"], 2.0), batch["class"])
        self.accuracy.update(loss.detach())
        self.seen.append(len(batch["class"]))
        self.steps += 1
        self.log("loss", loss, on_step=True)
        return loss

    def on_train_batch_start(self, batch, index):
        if index == 0 and self.current_epoch == 0:
            self.at_start = list(self.seen), self.steps, float(self.accuracy.weight)
            self.logged = dict(self.trainer.logged_metrics)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


def test_training_step_calibrates_where_forward_cannot_be_guessed():
    module, callback, _ = fit(ByName(), loaders=(DataLoader(Named(), 4),))
    assert module.at_start == ([], 0, 0), "calibration leaves traces"
    assert not module.logged
    assert callback.learner.formats["model.2.input"].signed.item() is False
    assert callback.learner.is_calibrated


def test_as_many_arguments_as_the_example_has_are_taken():
    class Optional(Classifier):
        example_input_array = torch.zeros(2, 6), torch.zeros(2)

        def forward(self, x, labels=None):
            return super().forward(x if labels is None else x * 0 + 5)

        def training_step(self, batch, index):
            return F.cross_entropy(self(*batch), batch[1])

    class First(lightning.Callback):
        def on_train_batch_start(self, trainer, module, batch, index):
            self.__dict__.setdefault("maximum", callback.learner.formats["net.0.input"].maximum.item())

    callback, first = LearnedBitwidth(**FOUR), First()
    fit(Optional(), callback, first)
    assert first.maximum == pytest.approx(5, rel=1e-3)


def test_what_cannot_run_without_training_is_named():
    class Manual(ByName):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

    with pytest.raises(
        ValueError, match=r"activations of Manual could not be calibrated: its forward takes no part .* calibration=\["
    ):
        fit(Manual(), loaders=(DataLoader(Named(), 4),), max_steps=5, max_epochs=None)
