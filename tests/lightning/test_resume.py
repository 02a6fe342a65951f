"""A run that goes on from a checkpoint is the uninterrupted run, bit for bit; and what checkpoints hold."""

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from lightning.pytorch.strategies import SingleDeviceStrategy

import adapt
from tests.covering import picked
from tests.lightning.modules import (
    BATCHES,
    RELEASE,
    RESTLESS,
    Adversaries,
    Classifier,
    ResumableLoader,
    Scaled,
    assert_same_run,
    fit,
    loader,
    precision,
    same,
    trainer,
    weights,
)

pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")

OPTIONS = {"l1": 1e-3, "l2": 1e-3, "quantize_biases": True, "seed": 2}


def adam(module):
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)
    return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]


def train(folder, module, epochs=4, ckpt_path=None, loaders=None, every=None, **options):
    """Train and keep a checkpoint of every epoch, or of every so many steps."""
    keep = ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=every)
    callback = precision(**OPTIONS)
    run = trainer(callback, keep, max_epochs=epochs, enable_checkpointing=True, **options)
    # Lightning restores the state of a loader in the middle of an epoch only.
    train_loader = loader() if every is None else ResumableLoader()
    run.fit(module, *(loaders or (train_loader, loader(2))), ckpt_path=ckpt_path)
    return callback


def assert_resumes(tmp_path, make, step, **options):
    whole_module, module = make(), make()
    whole = train(tmp_path, whole_module, **options)
    resumed = train(tmp_path / "again", module, ckpt_path=tmp_path / f"step={step}.ckpt", **options)
    for first, second in zip(whole.controllers, resumed.controllers, strict=True):
        assert first.step == second.step > step / len(whole.controllers)
        assert_same_run(first, second)
        assert first.trace.switches()[step // len(whole.controllers) :].any(), (
            "no format moved after the resumption, which would prove little"
        )
    assert same(weights(module), weights(whole_module))


@pytest.mark.covering(1)
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("make", [Classifier, lambda: Classifier(adam)], ids=["SGD", "AdamW and a schedule"])
def test_after_an_epoch(tmp_path, make, accumulate):
    options = {"accumulate_grad_batches": accumulate}
    assert_resumes(tmp_path, make, 2 * BATCHES // accumulate, **options)


@pytest.mark.parametrize("step", picked([1, 8, 13], 8))
def test_in_the_middle_of_an_epoch(tmp_path, step):
    assert_resumes(tmp_path, Classifier, step, every=1)


@pytest.mark.skipif(RELEASE < (2, 5), reason="Lightning itself does not resume exactly there")
def test_in_the_middle_of_an_epoch_of_accumulated_steps(tmp_path):
    assert_resumes(tmp_path, Classifier, 5, every=1, accumulate_grad_batches=2, val_check_interval=4)


def test_with_a_scaler(tmp_path):
    whole = train(tmp_path, Classifier(), plugins=Scaled())
    resumed = train(tmp_path / "b", Classifier(), plugins=Scaled(), ckpt_path=tmp_path / f"step={2 * BATCHES}.ckpt")
    assert_same_run(whole.controller, resumed.controller)


def test_two_optimizers(tmp_path):
    assert_resumes(tmp_path, Adversaries, 4 * BATCHES)


@pytest.mark.filterwarnings("ignore:.*a controller of its own")
def test_an_adopted_controller(tmp_path):
    def make():
        return Classifier(lambda module: adapt.ASGD(module, lr=0.05, policy=RESTLESS, seed=1))

    whole = train(tmp_path, make())
    resumed = train(tmp_path / "b", make(), ckpt_path=tmp_path / f"step={BATCHES}.ckpt")
    assert_same_run(whole.controller, resumed.controller)


def test_weights_that_a_strategy_restores_last_destroy_no_master(tmp_path):
    class Late(SingleDeviceStrategy):
        """Loads the weights after the optimizers are set up, as strategies that shard do."""

        restore_checkpoint_after_setup = True

    class Latest(Late):
        """Loads them after the optimizers' state even."""

        def load_optimizer_state_dict(self, checkpoint):
            super().load_optimizer_state_dict(checkpoint)
            self.load_model_state_dict(checkpoint)

    whole = train(tmp_path, Classifier())
    for kind in (Late, Latest):
        resumed = train(
            tmp_path / kind.__name__,
            Classifier(seed=9),
            ckpt_path=tmp_path / f"step={BATCHES}.ckpt",
            strategy=kind(torch.device("cpu")),
        )
        assert_same_run(whole.controller, resumed.controller)


def test_a_checkpoint_holds_plain_containers_and_what_validation_saw(tmp_path):
    class Seen(Classifier):
        def on_validation_epoch_end(self):
            self.last = weights(self)

    module = Seen()
    keep = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=2)
    fit(module, None, keep, enable_checkpointing=True, max_epochs=1, val_check_interval=2)
    state = torch.load(tmp_path / f"step={BATCHES}.ckpt", weights_only=True)
    assert same(state["state_dict"], module.last)
    assert state["optimizer_states"][0]["adapt"]["step"] == BATCHES
    assert not same(state["optimizer_states"][0]["adapt"]["masters"], state["state_dict"])
    plain = Classifier(seed=4)
    plain.load_state_dict(state["state_dict"])


def test_a_checkpoint_saved_after_fit_is_resumable_too(tmp_path):
    whole = train(tmp_path / "a", Classifier())
    callback = precision(**OPTIONS)
    run = trainer(callback, max_epochs=2)
    run.fit(Classifier(), loader(), loader(2))
    run.save_checkpoint(tmp_path / "after.ckpt")
    resumed = train(tmp_path / "b", Classifier(), ckpt_path=tmp_path / "after.ckpt")
    assert_same_run(whole.controller, resumed.controller)


def test_but_not_if_someone_changed_the_weights_after_fit(tmp_path):
    module = Classifier()
    _, run = fit(module)
    with torch.no_grad():
        module.net[0].weight.mul_(2)
    run.save_checkpoint(tmp_path / "after.ckpt")
    assert "adapt" not in torch.load(tmp_path / "after.ckpt", weights_only=True)["optimizer_states"][0]
    with pytest.warns(UserWarning, match="saved without a controller"):
        fit(Classifier(), ckpt_path=tmp_path / "after.ckpt", max_epochs=4)


def test_a_finished_run_that_is_resumed_keeps_its_weights(tmp_path):
    whole = train(tmp_path, Classifier(), epochs=2)
    module = Classifier(seed=3)
    resumed = train(tmp_path / "b", module, epochs=2, ckpt_path=tmp_path / f"step={2 * BATCHES}.ckpt")
    assert_same_run(whole.controller, resumed.controller)
    for name, master in whole.controller.masters.items():
        assert torch.equal(module.get_parameter(name), adapt.quantize(master, whole.controller.precisions[name]))


def test_a_float32_checkpoint_becomes_the_masters(tmp_path):
    module = Classifier()
    run = trainer(max_epochs=1)
    run.fit(module, loader(), loader(2))
    run.save_checkpoint(tmp_path / "float32.ckpt")
    trained = weights(module)

    class Looks(Classifier):
        def on_train_start(self):
            self.masters = {name: m.clone() for name, m in callback.controller.masters.items()}

    module, callback = Looks(seed=7), precision()
    with pytest.warns(UserWarning, match="saved without a controller"):
        fit(module, callback, ckpt_path=tmp_path / "float32.ckpt")
    assert module.masters
    assert all(torch.equal(master, trained[name]) for name, master in module.masters.items())


def test_the_checkpoint_of_an_exception_holds_the_controller(tmp_path):
    class Broken(Classifier):
        def on_train_batch_start(self, batch, index):
            if self.trainer.global_step == 2 * BATCHES:
                raise RuntimeError("the machine goes down")

    whole = train(tmp_path / "a", Classifier())
    callback = precision(**OPTIONS)
    with pytest.raises(RuntimeError, match="the machine goes down"):
        fit(Broken(), callback, OnExceptionCheckpoint(tmp_path, "last"), max_epochs=4, enable_checkpointing=True)
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["optimizer_states"][0]["adapt"]
    assert state["step"] == 2 * BATCHES == callback.controller.step
    assert all(torch.equal(state["masters"][name], m) for name, m in callback.controller.masters.items())
    rows = whole.trace.step <= 2 * BATCHES
    assert np.array_equal(callback.trace.word_length, whole.trace.word_length[rows])


def test_deployable_checkpoints_are_announced_as_not_resumable(tmp_path, told):
    keep = ModelCheckpoint(tmp_path, "deploy", save_weights_only=True)
    callback, _ = fit(Classifier(), None, keep, enable_checkpointing=True)
    (message,) = told()
    assert "cannot be resumed" in message
    state = torch.load(tmp_path / "deploy.ckpt", weights_only=True)["state_dict"]
    for name, master in callback.controller.masters.items():
        assert torch.equal(state[name], adapt.quantize(master, callback.controller.precisions[name]))
