"""Training in Hugging Face's Trainer: `pytest -m clients tests/clients/test_transformers.py`."""

import pytest
import torch
from torch import nn

import adapt
from tests.clients import documented
from tests.clients.witness import check, network, nothing_misleading, rows, same
from tests.training import Witness

transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, x, labels=None):
        logits = self.net(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Watches(transformers.TrainerCallback):
    """Holds every pass in training against the grid."""

    witness = None

    def on_step_begin(self, args, state, control, **kwargs):
        if self.witness is None:
            self.witness = Witness(kwargs["model"], self.precision.controller)


def trained(folder, steps, resume=None, **options):
    model, watches = Classifier(), Watches()
    data = [{"x": x, "labels": label} for x, label in zip(*rows().tensors, strict=True)]
    arguments = transformers.TrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=16, save_steps=10, logging_steps=5,
        learning_rate=1e-2, lr_scheduler_type="constant", report_to=[], use_cpu=True, disable_tqdm=True, **options,
    )  # fmt: skip
    names = documented.run(
        "transformers", Trainer=transformers.Trainer, model=model, arguments=arguments, data=data, held_out=data
    )
    trainer, watches.precision = names["trainer"], names["precision"]
    trainer.add_callback(watches)
    trainer.train(resume_from_checkpoint=resume)
    return model, names["precision"].controller, trainer, watches.witness


def test_every_pass_is_on_the_grid_formats_move_and_the_loss_is_seen(tmp_path):
    with nothing_misleading():
        _, controller, trainer, witness = trained(tmp_path, 80, gradient_accumulation_steps=2)
    check(controller, witness)
    assert any("adapt/mean_word_length" in entry for entry in trainer.state.log_history)
    assert not controller.is_attached
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    seen = sum(controller.state_dict()["state"]["losses"][-5:]) / 5 - float(controller.penalty())
    assert seen == pytest.approx(logged[-1], abs=0.03), "the mean of the last five steps"


@pytest.mark.parametrize("resume", ["its path", True])
def test_a_resumed_run_ends_with_the_same_bits(resume, tmp_path):
    whole, *_ = trained(tmp_path / "whole", 20)
    trained(tmp_path / "parts", 10)
    found = str(tmp_path / "parts" / "checkpoint-10") if resume == "its path" else resume
    resumed, *_ = trained(tmp_path / "parts", 20, found)
    assert same(whole, resumed)


@pytest.mark.parametrize("only_model", [False, True])
def test_the_best_model_comes_back_with_its_formats(only_model, tmp_path):
    model, controller, trainer, _ = trained(
        tmp_path, 40, eval_strategy="steps", eval_steps=10, load_best_model_at_end=True, save_only_model=only_model,
        metric_for_best_model="eval_loss", greater_is_better=True,
    )  # fmt: skip
    best = trainer.state.best_model_checkpoint
    assert best.endswith("checkpoint-10"), "the first, whose loss is the highest"
    safetensors = pytest.importorskip("safetensors.torch")
    saved = safetensors.load_file(f"{best}/model.safetensors")
    assert all(torch.equal(model.state_dict()[name], value) for name, value in saved.items())
    assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.state.best_metric, rel=1e-6)
    if not only_model:
        assert controller.formats == adapt.formats(f"{best}/optimizer.pt")
