"""Training in Hugging Face's Trainer: `pytest -m clients tests/clients/test_transformers.py`."""

import pytest
import torch
from torch import nn

import adapt

transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
        self.on_grid = []

    def forward(self, x, labels=None):
        if self.training:
            weight = self.net[0].weight.detach()
            self.on_grid.append(weight.unique().numel() < 256)
        logits = self.net(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def trained(folder, steps, resume=None):
    from adapt.integrations.transformers import AdaptivePrecisionCallback

    torch.manual_seed(0)
    x = torch.randn(256, 8)
    rows = [{"x": one, "labels": label} for one, label in zip(x, (x[:, 0] > 0).long(), strict=True)]
    model = Classifier()
    precision = AdaptivePrecisionCallback(adapt.AdaPT.compact(), rounding="nearest")
    arguments = transformers.TrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=16, save_steps=10, logging_steps=5,
        learning_rate=1e-2, lr_scheduler_type="constant", report_to=[], use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    trainer = transformers.Trainer(model, arguments, train_dataset=rows, callbacks=[precision])
    trainer.train(resume_from_checkpoint=resume)
    return model, precision.controller, trainer


def test_every_pass_is_on_the_grid_formats_move_and_the_loss_is_seen(tmp_path):
    model, controller, trainer = trained(tmp_path, 80)
    assert all(model.on_grid)
    assert len(set(map(tuple, controller.trace.word_length.tolist()))) > 1
    assert any("adapt/mean_word_length" in entry for entry in trainer.state.log_history)
    assert not controller.is_attached


def test_a_resumed_run_ends_with_the_same_bits(tmp_path):
    whole, _, _ = trained(tmp_path / "whole", 20)
    trained(tmp_path / "parts", 10)
    resumed, _, _ = trained(tmp_path / "parts", 20, str(tmp_path / "parts" / "checkpoint-10"))
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
