"""The packed file of the best checkpoint, written when fit ends."""

import copy
import pickle

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

import adapt
import adapt.export
from adapt.learned import Budget
from adapt.lightning import AdaptivePrecision, LearnedBitwidth
from tests.lightning.modules import RESTLESS, Classifier, data, loader, trainer

pytest.importorskip("safetensors")
pytest.importorskip("zstandard")

CALLBACKS = {
    "adaptive": lambda path: AdaptivePrecision(RESTLESS, activations=8, export=path),
    "learned": lambda path: LearnedBitwidth(
        Budget(bits=4), Budget(bits=4), update_every=2, phases=(0.2, 0.4, 0.4), export=path
    ),
}


class Remembering(Classifier):
    """Keeps the outputs of every validation."""

    def on_validation_epoch_end(self):
        inputs = data().tensors[0]
        with torch.no_grad():
            self.__dict__.setdefault("seen", []).append(self(inputs.to(self.device)).cpu())
        self.log("chosen", -1.0 if len(self.seen) == 3 else 0.0)


@pytest.mark.covering(1)
@pytest.mark.parametrize("kind", CALLBACKS)
@pytest.mark.parametrize("weights_only", [False, True])
def test_it_computes_what_the_best_checkpoint_was_validated_with(tmp_path, kind, weights_only):
    module, path = Remembering(), tmp_path / "best.safetensors"
    best = ModelCheckpoint(tmp_path, monitor="chosen", save_weights_only=weights_only)
    run = trainer(CALLBACKS[kind](path), best, max_epochs=5, enable_checkpointing=True, num_sanity_val_steps=0)
    run.fit(module, loader(), loader(2))
    exported = adapt.export.load(path, Remembering())
    with torch.no_grad():
        assert torch.equal(exported.module()(data().tensors[0]), module.seen[2])
    assert exported.words.keys() >= {"net.0.weight"}
    assert exported.sites


@pytest.mark.parametrize("kind", CALLBACKS)
def test_a_callback_is_captured_during_and_after_fit(kind):
    inputs, seen = data().tensors[0], []

    class Capturing(Callback):
        def on_validation_end(self, trainer, module):
            seen.append(adapt.export.capture(callback, inputs=inputs))

    callback, module = CALLBACKS[kind](None), Classifier()
    trainer(callback, Capturing(), max_epochs=3, num_sanity_val_steps=0).fit(module, loader(), loader(2))
    exported = adapt.export.capture(callback)
    assert len(seen) == 3
    assert exported.formats == seen[-1].formats
    for name, words in exported.words.items():
        assert torch.equal(words, seen[-1].words[name])
    assert exported.sites
    with torch.no_grad():
        assert torch.equal(exported.module()(inputs), seen[-1].module()(inputs))


def test_without_a_path_nothing_is_written_and_nothing_needed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer(AdaptivePrecision(RESTLESS), max_epochs=1).fit(Classifier(), loader())
    assert not list(tmp_path.rglob("*.safetensors"))


def test_what_cannot_be_written_is_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match="ModelCheckpoint"):
        trainer(AdaptivePrecision(RESTLESS, export=tmp_path / "x"), enable_checkpointing=False).fit(
            Classifier(), loader()
        )
    run = trainer(
        AdaptivePrecision(RESTLESS, export=tmp_path / "no" / "x"), ModelCheckpoint(tmp_path), enable_checkpointing=True
    )
    with pytest.raises(ValueError, match="folder"):
        run.fit(Classifier(), loader())


def test_a_failure_at_the_end_is_told_and_ends_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(adapt.export.Exported, "save", lambda self, path: (_ for _ in ()).throw(OSError("disk full")))
    run = trainer(
        AdaptivePrecision(RESTLESS, export=tmp_path / "x"),
        ModelCheckpoint(tmp_path),
        enable_checkpointing=True,
        max_epochs=1,
    )
    with pytest.warns(UserWarning, match=r"x was not written: disk full. The checkpoint is .*\.ckpt"):
        run.fit(Classifier(), loader())
    assert run.state.finished


def test_copies_and_pickles_of_a_callback_write_it_too(tmp_path):
    for again in (copy.deepcopy, lambda callback: pickle.loads(pickle.dumps(callback))):
        path = tmp_path / "again"
        callback = again(AdaptivePrecision(RESTLESS, export=path))
        trainer(callback, ModelCheckpoint(tmp_path), enable_checkpointing=True, max_epochs=1).fit(
            Classifier(), loader()
        )
        assert adapt.export.load(path).words
        path.unlink()
