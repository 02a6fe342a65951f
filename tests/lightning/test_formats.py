"""Number formats in Lightning's checkpoints: `adapt.formats(path)` of those with and without optimizer states."""

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

import adapt
from adapt.learned import Budget
from adapt.lightning import LearnedBitwidth
from tests.lightning.averaging import EMAWeightAveraging, needs_averaging
from tests.lightning.modules import BATCHES, Adversaries, Classifier, fit, loader, precision

pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")

EVERYTHING = {"quantize_biases": True, "activations": "range"}
CALLBACKS = {
    "adaptive": lambda: precision(**EVERYTHING),
    "MuPPET": lambda: precision(adapt.MuPPET(window=2, violations=1, threshold=(1.0, 0.0, 0.0)), **EVERYTHING),
    "fixed": lambda: precision(adapt.Fixed(adapt.Precision(5, 3))),
    "learned": lambda: LearnedBitwidth(
        Budget(bits=4), Budget(bits=4), phases=(0.2, 0.6, 0.2), update_every=2, calibration=2
    ),
}


class Remembers(Callback):
    """Keeps formats and masters of every step."""

    def __init__(self, callback):
        self.callback, self.formats, self.masters = callback, {}, {}

    def on_train_batch_end(self, trainer, module, *args):
        (controller,) = self.callback.controllers
        self.formats[trainer.global_step] = dict(controller.formats)
        self.masters[trainer.global_step] = {name: m.clone() for name, m in controller.masters.items()}


@pytest.mark.covering(1)
@pytest.mark.parametrize("weights_only", [False, True])
@pytest.mark.parametrize("name", CALLBACKS)
def test_every_checkpoint_holds_the_formats_of_its_own_step(name, weights_only, tmp_path):
    callback = CALLBACKS[name]()
    remembers = Remembers(callback)
    keep = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=4, save_weights_only=weights_only)
    fit(Classifier(), callback, remembers, keep, enable_checkpointing=True, max_epochs=4)
    assert remembers.formats[4] != remembers.formats[20] or name == "fixed"
    for step in (4, 20):
        found = adapt.formats(tmp_path / f"step={step}.ckpt")
        assert found == remembers.formats[step]
        saved = torch.load(tmp_path / f"step={step}.ckpt", weights_only=True)
        assert ("optimizer_states" in saved) != weights_only
        for layer, master in remembers.masters[step].items():
            assert torch.equal(saved["state_dict"][layer], found[layer].quantize(master) if layer in found else master)


def test_the_best_checkpoint_has_the_formats_with_which_it_was_measured(tmp_path):
    class Scored(Classifier):
        def on_validation_epoch_end(self):
            self.log("score", float(self.current_epoch == 1))

    callback = precision()
    remembers = Remembers(callback)
    keep = ModelCheckpoint(tmp_path, monitor="score", mode="max", save_weights_only=True)
    fit(Scored(), callback, remembers, keep, enable_checkpointing=True)
    assert adapt.formats(keep.best_model_path) == remembers.formats[2 * BATCHES]
    assert adapt.formats(keep.best_model_path) != adapt.formats(callback.controller)


def test_two_optimizers_share_a_file(tmp_path):
    keep = ModelCheckpoint(tmp_path, "last", save_weights_only=True)
    callback, _ = fit(Adversaries(), None, keep, enable_checkpointing=True)
    found = adapt.formats(tmp_path / "last.ckpt")
    assert found == {name: form for c in callback.controllers for name, form in c.formats.items()}
    assert found.keys() == {"generator.weight", "discriminator.weight"}


@pytest.mark.covering(1)
@pytest.mark.parametrize("weights_only", [False, True])
@pytest.mark.parametrize("name", CALLBACKS)
def test_checkpoints_that_are_saved_after_fit_hold_them_too(name, weights_only, tmp_path):
    module, callback = Classifier(), CALLBACKS[name]()
    _, run = fit(module, callback)
    run.save_checkpoint(tmp_path / "after.ckpt", weights_only=weights_only)
    assert adapt.formats(tmp_path / "after.ckpt") == dict(callback.controllers[0].formats)
    # They belong to these weights and to no others.
    with torch.no_grad():
        module.net[0].weight.add_(1)
    run.save_checkpoint(tmp_path / "changed.ckpt", weights_only=weights_only)
    with pytest.raises(ValueError, match="holds no formats"):
        adapt.formats(tmp_path / "changed.ckpt")


def test_a_checkpoint_without_optimizer_states_still_loads(tmp_path):
    keep = ModelCheckpoint(tmp_path, "deploy", save_weights_only=True)
    fit(Classifier(), None, keep, enable_checkpointing=True)
    module = Classifier.load_from_checkpoint(tmp_path / "deploy.ckpt", weights_only=True)
    saved = torch.load(tmp_path / "deploy.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, saved[name]) for name, value in module.state_dict().items())


def test_a_fit_without_the_callback_saves_none(tmp_path):
    callback, run = fit(Classifier())
    run.callbacks.remove(callback)
    run.fit_loop.max_epochs += 1
    run.fit(Classifier(seed=1), loader(), loader(2))
    run.save_checkpoint(tmp_path / "plain.ckpt", weights_only=True)
    assert run.global_step > 3 * BATCHES
    with pytest.raises(ValueError, match="holds no formats"):
        adapt.formats(tmp_path / "plain.ckpt")


@needs_averaging
def test_the_mean_of_averaged_weights_is_saved_on_its_grid(tmp_path):
    keep = ModelCheckpoint(tmp_path, "{step}")
    fit(Classifier(), None, EMAWeightAveraging(decay=0.8), keep, enable_checkpointing=True)
    saved = torch.load(keep.best_model_path, weights_only=True)
    for name, form in adapt.formats(keep.best_model_path).items():
        assert torch.equal(saved["state_dict"][name], form.quantize(saved["adapt_mean"][name]))
