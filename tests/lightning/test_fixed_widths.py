"""LSQ and AQT in Lightning: what the plain loop does, resumed to the bit, with the trainer's length."""

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import BackboneFinetuning, LearningRateFinder, ModelCheckpoint
from torch.nn import functional as F

import adapt
from adapt.learned import attach_aqt, attach_lsq
from adapt.lightning import AQT, LSQ
from tests.lightning.modules import Classifier, ResumableLoader, Scaled, assert_nothing_attached, loader, same, trainer
from tests.lightning.modules import weights as weights_of

KINDS = [lambda: LSQ(4, 4), lambda: AQT(first_bits=6)]


def fit(callback, module=None, *others, loaders=None, ckpt_path=None, **options):
    """Train five epochs of six steps; return the module and the trainer."""
    module = Classifier() if module is None else module
    run = trainer(callback, *others, **{"max_epochs": 5, **options})
    run.fit(module, *(loaders or (loader(), loader(2))), ckpt_path=ckpt_path)
    return module, run


def plain(attach):
    """The same training in a plain loop: the module and the learner."""
    module = Classifier()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
    learner = attach(optimizer, module)
    for _ in range(5):
        for inputs, targets in loader():
            optimizer.zero_grad()
            F.cross_entropy(module(inputs), targets).backward()
            optimizer.step()
    return module, learner


@pytest.mark.parametrize(
    ("make", "attach"),
    [
        (
            lambda: LSQ(3, 5, per_channel=False),
            lambda optimizer, module: attach_lsq(
                optimizer, module, [x for x, _ in loader()], weight_bits=3, activation_bits=5, per_channel=False
            ),
        ),
        (
            lambda: AQT(weight_bits=3, last_bits=5, activations_from=0.3),
            lambda optimizer, module: attach_aqt(
                optimizer, module, steps=30, weight_bits=3, last_bits=5, activations_from=0.3
            ),
        ),
    ],
    ids=["lsq", "aqt"],
)
def test_it_is_what_the_plain_loop_does(make, attach):
    callback = make()
    module, _ = fit(callback)
    assert_nothing_attached()
    twin, learner = plain(attach)
    assert same(learner.masters, callback.learner.masters)
    assert same(weights_of(twin), weights_of(module))
    assert repr(learner.formats) == repr(callback.learner.formats)


@pytest.mark.parametrize("make", KINDS, ids=["lsq", "aqt"])
@pytest.mark.parametrize("stop", [3, 6, 17])
def test_resume_is_exact(tmp_path, make, stop):
    options = {"enable_checkpointing": True, "max_epochs": 4}
    saving = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1)
    callback, resumed = make(), make()
    module, _ = fit(callback, None, saving, loaders=(ResumableLoader(),), **options)
    path = tmp_path / f"step={stop}.ckpt"
    again, _ = fit(resumed, Classifier(seed=3), loaders=(ResumableLoader(),), ckpt_path=path, max_epochs=4)
    assert same(callback.learner.masters, resumed.learner.masters)
    assert same(weights_of(module), weights_of(again))
    assert np.array_equal(callback.learner.widths.word_length, resumed.learner.widths.word_length)
    assert adapt.formats(path)["net.0.weight"].word_length.max() == (6 if isinstance(callback, AQT) else 4)


def test_aqt_begins_with_the_activations_after_a_fifth_of_the_trainers_steps():
    callback = AQT()
    fit(callback)
    assert callback.learner.plan.steps == 30
    widths = callback.learner.widths
    assert dict(zip(widths.step.tolist(), widths.of("net.0.weight.input")[:, 0].tolist(), strict=True)) == {1: 32, 6: 8}


@pytest.mark.parametrize("make", KINDS, ids=["lsq", "aqt"])
def test_the_learning_rate_is_the_modules(make):
    _, run = fit(make())
    assert run.optimizers[0].param_groups[0]["lr"] == 0.05


@pytest.mark.parametrize("make", [lambda: LSQ(4, 4, layer_bits={"net.2": 8}), lambda: AQT(layer_bits={"net.2": 7})])
def test_bits_by_hand_go_before_the_given_ones(make):
    callback = make()
    fit(callback)
    wanted = 7 if isinstance(callback, AQT) else 8
    assert set(callback.learner.formats["net.2.weight"].word_length.tolist()) == {wanted}
    assert callback.learner.formats["net.2.input"].word_length == wanted


@pytest.mark.parametrize("make", KINDS, ids=["lsq", "aqt"])
def test_figures_are_logged(make):
    _, run = fit(make())
    assert {"adapt/weight_bits", "adapt/activation_bits", "adapt/size_ratio"} <= set(run.callback_metrics)


@pytest.mark.parametrize("make", KINDS, ids=["lsq", "aqt"])
@pytest.mark.parametrize("other", [BackboneFinetuning(unfreeze_backbone_at_epoch=2), LearningRateFinder()])
def test_callbacks_that_cannot_work_are_refused_before_fit(make, other):
    callback = make()
    with pytest.raises(NotImplementedError, match=f"{type(other).__name__} .* {type(callback).__name__}"):
        callback.setup(trainer(callback, other), Classifier(), "fit")


def test_a_scaler_is_refused_where_steps_learn_from_gradients():
    with pytest.raises(NotImplementedError, match="a scaler multiplies"):
        fit(LSQ(4, 4), plugins=[Scaled()])
    callback = AQT()
    callback.setup(trainer(callback, plugins=[Scaled()]), Classifier(), "fit")


def test_aqt_must_know_the_length_of_the_training():
    with pytest.raises(ValueError, match="AQT must know how long the training takes"):
        fit(AQT(), max_epochs=-1)
    assert_nothing_attached()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LSQ(9), "weight_bits"),
        (lambda: LSQ(4, 4, calibration=0), "calibration must be a number of batches"),
        (lambda: AQT(weight_bits=1), "weight_bits must be a whole number of 2 to 8 bits"),
        (lambda: AQT(layer_bits={"net.0": 1}), "layer_bits"),
    ],
    ids=range(4),
)
def test_bad_options_are_refused_at_once(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_options_of_the_plain_loop_alone_are_refused():
    with pytest.raises(TypeError, match="steps"):
        LSQ(4, steps=10)
    with pytest.raises(TypeError, match="steps"):
        AQT(steps=10)
