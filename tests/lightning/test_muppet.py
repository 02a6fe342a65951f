"""MuPPET in Lightning, which tells it how many optimizer steps an epoch has."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import BatchSizeFinder, GradientAccumulationScheduler, ModelCheckpoint
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

import adapt
from tests.covering import picked
from tests.lightning.modules import (
    BATCHES,
    Adversaries,
    Classifier,
    ResumableLoader,
    WithData,
    assert_nothing_attached,
    assert_same_run,
    data,
    fit,
    loader,
    precision,
    same,
    sgd,
    trainer,
    weights,
)

pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")

SWIFT = adapt.MuPPET(word_lengths=(8, 12), window=2, violations=1, threshold=(0.0, 0.0, 0.0))
"""Every second epoch raises the word length: 8 bits, 12, float32."""


class Endless(IterableDataset):
    """The examples, without a length."""

    def __iter__(self):
        return iter(data())


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, BATCHES),
        ({"accumulate_grad_batches": 2}, BATCHES // 2),
        ({"accumulate_grad_batches": 4}, BATCHES // 4 + 1),
        ({"limit_train_batches": 4}, 4),
        ({"limit_train_batches": 0.5}, BATCHES // 2),
        ({"overfit_batches": 2}, 2),
    ],
    ids=["plain", "accumulation", "accumulation with a shorter end", "a limit", "a share", "overfitting"],
)
def test_an_epoch_is_as_long_as_the_trainer_makes_it(options, steps):
    callback, run = fit(Classifier(), precision(SWIFT), max_epochs=5, **options)
    assert run.global_step == 5 * steps
    assert callback.controller.policy == replace(SWIFT, steps_per_epoch=steps)
    words = callback.trace.word_length[:, 0]
    assert np.flatnonzero(np.diff(words)).tolist() == [2 * steps - 2, 4 * steps - 2]
    assert (words[0], words[-1]) == (8, 32)


def test_it_is_the_plain_run_and_leaves_float32():
    module, plain = Classifier(), Classifier()
    callback, _ = fit(module, precision(SWIFT, quantize_biases=True), max_epochs=5, num_sanity_val_steps=0)
    optimizer = sgd(plain)
    told = replace(SWIFT, steps_per_epoch=BATCHES)
    controller = adapt.attach(optimizer, plain, told, quantize_biases=True)
    plain.train()
    for _ in range(5):
        for inputs, targets in loader():
            optimizer.zero_grad()
            F.cross_entropy(plain(inputs), targets).backward()
            optimizer.step()
    assert_same_run(callback.controller, controller)
    assert set(controller.precisions.values()) == {None}
    assert same(weights(module), weights(plain))


def test_a_second_fit_is_told_anew():
    callback = precision(SWIFT)
    for batches in (2, 5):
        fit(Classifier(), callback, loaders=(loader(batches),), max_epochs=1)
        assert callback.controller.policy.steps_per_epoch == batches


def test_what_the_user_said_is_kept():
    told = replace(SWIFT, steps_per_epoch=2)
    callback, _ = fit(Classifier(), precision(told), loaders=(DataLoader(Endless(), 4),), max_epochs=2)
    assert callback.controller.policy is told
    assert set(callback.controller.precisions.values()) == {None}


def test_a_finder_of_batch_sizes_may_change_the_length():
    module, callback = WithData(), precision(SWIFT)
    finder = BatchSizeFinder(steps_per_trial=1, init_val=2, max_trials=3)
    run = trainer(callback, finder, max_epochs=2)
    run.fit(module)
    assert module.batch_size != 4
    assert callback.controller.policy.steps_per_epoch == run.num_training_batches == run.global_step // 2
    assert {p.word_length for p in callback.controller.precisions.values()} == {12}


@pytest.mark.parametrize(
    ("make", "loaders", "others", "message"),
    [
        (Classifier, (DataLoader(Endless(), 4),), (), "the training data have no length"),
        (Adversaries, None, (), "in manual optimization the module decides"),
        (Classifier, None, (GradientAccumulationScheduler({0: 2, 1: 3}),), "GradientAccumulationScheduler changes"),
    ],
    ids=["iterable", "manual", "scheduler"],
)
def test_a_trainer_that_cannot_know_says_what_to_do(make, loaders, others, message):
    module, callback = make(), precision(SWIFT)
    before = weights(module)
    with pytest.raises(ValueError, match=f"MuPPET must know .* {message}.* steps_per_epoch="):
        fit(module, callback, *others, loaders=loaders)
    assert same(weights(module), before)
    assert_nothing_attached()


@pytest.mark.parametrize(
    "step", picked([BATCHES - 1, BATCHES, 2 * BATCHES + 3, 4 * BATCHES + 1], BATCHES, 2 * BATCHES + 3)
)
def test_a_resumed_run_is_the_uninterrupted_run(tmp_path, step):
    def train(folder, ckpt_path=None):
        module, callback = Classifier(), precision(SWIFT, quantize_biases=True, activations="range")
        keep = ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1)
        run = trainer(callback, keep, max_epochs=5, enable_checkpointing=True)
        run.fit(module, ResumableLoader(), loader(2), ckpt_path=ckpt_path)
        return module, callback.controller

    module, whole = train(tmp_path)
    again, resumed = train(tmp_path / "again", tmp_path / f"step={step}.ckpt")
    assert_same_run(resumed, whole)
    assert resumed.policy.steps_per_epoch == BATCHES
    assert resumed.trace.word_length[-1].tolist() == [32, 32]
    assert same(weights(again), weights(module))
    assert torch.equal(again.net[0].weight, whole.masters["net.0.weight"])
