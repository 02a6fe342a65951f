"""Learned bit widths in Lightning: phases share the steps, budgets are met, runs resume, teachers are heard."""

import contextlib
import copy
import math
import pickle
import re

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelCheckpoint,
)
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.nn import functional as F

import adapt
from adapt.learned import Budget, Distillation, Widths
from adapt.lightning import AdaptivePrecision, LearnedBitwidth
from adapt.lightning.fitting import in_steps
from adapt.trace.display import totals
from tests.covering import picked
from tests.lightning.modules import Classifier, ResumableLoader, Scaled, assert_nothing_attached, loader, same, trainer
from tests.lightning.modules import weights as weights_of

FOUR = {"weight_budget": Budget(bits=4), "activation_budget": Budget(bits=4), "update_every": 2}


def fit(module=None, callback=None, *others, loaders=None, ckpt_path=None, **options):
    """Train five epochs of six steps; return module, callback and trainer."""
    module = Classifier() if module is None else module
    callback = LearnedBitwidth(**FOUR) if callback is None else callback
    run = trainer(callback, *others, **{"max_epochs": 5, **options})
    run.fit(module, *(loaders or (loader(), loader(2))), ckpt_path=ckpt_path)
    return module, callback, run


def test_budgets_are_met_and_the_module_keeps_quantised_weights():
    module, callback, _ = fit()
    learner = callback.learner
    assert learner.step == 30
    assert [entry["phase"] for entry in learner.log] == ["pretraining", "learning", "finetuning"]
    assert learner.size.weight_bits <= 4 * 1.01
    assert learner.size.activation_bits <= 4 * 1.01
    form = learner.formats["net.0.weight"]
    quotient = module.net[0].weight.detach() / torch.from_numpy(form.step)[:, None]
    torch.testing.assert_close(quotient, quotient.round(), atol=1e-3, rtol=0)
    assert_nothing_attached()


def test_bits_by_hand_stay():
    budgets = {"weight_budget": Budget(bits=6), "activation_budget": Budget(bits=6)}
    _, callback, _ = fit(None, LearnedBitwidth(**budgets, layer_bits={"net.0": 6, "net.2.weight": [3, 4]}))
    assert (callback.learner.formats["net.0.weight"].word_length == 6).all()
    assert callback.learner.formats["net.0.input"].word_length == 6
    widths = callback.learner.formats["net.2.weight"].word_length
    assert 3 <= widths.min() <= widths.max() <= 4


def test_it_is_what_the_plain_loop_does():
    module, callback, _ = fit()
    twin = Classifier()
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.05, momentum=0.9)
    learner = adapt.learned.attach(
        optimizer, twin, [batch[0] for batch in loader()], phases=in_steps((0.1, 0.8, 0.1), 30, None), **FOUR
    )
    for _ in range(5):
        for batch in loader():
            optimizer.zero_grad()
            F.cross_entropy(twin(batch[0]), batch[1]).backward()
            optimizer.step()
    assert same(learner.masters, callback.learner.masters)
    assert same(weights_of(twin), weights_of(module))


@pytest.mark.parametrize(
    ("phases", "steps", "epochs", "expected"),
    [
        ((0.3, 0.4, 0.3), 100, None, (30, 40, 30)),
        ((1, 2, 1), 40, 4, (10, 20, 10)),
        ((0.0, 1.0, 0.0), 7, 3, (0, 7, 0)),
        ((0.98, 0.01, 0.01), 10, None, (9, 1, 0)),
    ],
)
def test_phases_share_the_steps(phases, steps, epochs, expected):
    found = in_steps(phases, steps, epochs)
    assert (found.pretraining, found.learning, found.finetuning) == expected


def test_accumulation_counts_optimizer_steps():
    _, callback, _ = fit(accumulate_grad_batches=2)
    assert callback.learner.plan.phases.total == 15 == callback.learner.step


def test_a_scheduler_of_the_module_keeps_the_learning_rate():
    def scheduled(module):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.1)]

    _, callback, run = fit(Classifier(scheduled))
    assert not callback.learner.plan.schedule
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.05 * 0.01)
    _, callback, run = fit()
    assert callback.learner.plan.schedule
    assert run.optimizers[0].param_groups[0]["lr"] < 0.05


def test_figures_are_logged_and_files_written(tmp_path):
    _, callback, run = fit(logger=CSVLogger(tmp_path, version=0), log_every_n_steps=3)
    folder = tmp_path / "lightning_logs" / "version_0"
    table = (folder / "metrics.csv").read_text().splitlines()
    names = table[0].split(",")
    shared = ("adapt/mean_word_length", "adapt/nonzero", "adapt/size_ratio", "adapt/memory_ratio")
    for name in (
        *shared,
        "adapt/weight_bits",
        "adapt/activation_kilobytes",
        "adapt/penalty",
        "adapt_layers/word_length/net.0.weight.input",
    ):
        assert name in names
    assert run.callback_metrics["adapt/weight_bits"] == pytest.approx(callback.learner.size.weight_bits)
    mean = float(run.callback_metrics["adapt/mean_word_length"])
    assert mean == pytest.approx(totals(callback.trace, callback.learner.widths)["mean_word_length"][-1])
    widths = Widths.load(folder / "widths.npz")
    assert np.array_equal(widths.word_length, callback.learner.widths.word_length)
    assert len(adapt.Trace.load(folder / "trace.npz")) == len(callback.trace)


def test_tensorboard_gets_pictures_by_layer_and_by_channel(tmp_path):
    pytest.importorskip("tensorboard")
    pytest.importorskip("matplotlib")
    from lightning.pytorch.loggers import TensorBoardLogger
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit(logger=TensorBoardLogger(tmp_path, version=0))
    events = EventAccumulator(str(tmp_path / "lightning_logs" / "version_0"), {"images": 0}).Reload()
    images = events.Tags()["images"]
    assert "adapt/word_length_heatmap" in images
    assert "adapt/channels/net.0.weight" in images
    assert "adapt/channels/net.0.bias" not in images


@pytest.mark.parametrize("stop", picked([4, 10, 14, 20, 22], 4, 14))
def test_resume_is_exact(tmp_path, stop):
    options = {"enable_checkpointing": True, "max_epochs": 4}
    saving = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1)
    module, callback, _ = fit(None, LearnedBitwidth(**FOUR), saving, loaders=(ResumableLoader(),), **options)
    again, resumed, _ = fit(
        Classifier(seed=3),
        LearnedBitwidth(**FOUR),
        loaders=(ResumableLoader(),),
        ckpt_path=tmp_path / f"step={stop}.ckpt",
        max_epochs=4,
    )
    assert same(callback.learner.masters, resumed.learner.masters)
    assert same(weights_of(module), weights_of(again))
    assert np.array_equal(callback.learner.widths.word_length, resumed.learner.widths.word_length)
    assert callback.learner.log == resumed.learner.log


def test_a_checkpoint_after_fit_goes_on(tmp_path):
    _, callback, run = fit()
    run.save_checkpoint(tmp_path / "end.ckpt")
    state = torch.load(tmp_path / "end.ckpt", weights_only=True)
    assert state["optimizer_states"][0]["adapt"]["step"] == 30
    assert same(state["optimizer_states"][0]["adapt"]["masters"], callback.learner.masters)


def test_a_second_fit_begins_anew():
    module, callback, _ = fit()
    first = callback.learner
    fit(module, callback)
    assert callback.learner is not first
    assert callback.learner.step == 30


def test_an_interrupted_fit_detaches():
    class Interrupted(Classifier):
        def training_step(self, batch, index):
            if index == 3:
                raise ArithmeticError("interrupted")
            return super().training_step(batch, index)

    module = Interrupted()
    with pytest.raises(ArithmeticError):
        fit(module)
    assert_nothing_attached()
    assert "training_step" not in vars(module)


class Inner(lightning.LightningModule):
    """A module without a forward of its own, whose batches are dictionaries."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))

    def training_step(self, batch, index):
        return {"loss": F.cross_entropy(self.model(batch[0]), batch[1])}

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def test_modules_without_forward_are_calibrated_by_their_network():
    _, callback, _ = fit(Inner(), loaders=(loader(),))
    assert callback.learner.formats["model.2.input"].signed.item() is False


def test_batches_may_be_given():
    class First(lightning.Callback):
        def on_train_batch_start(self, trainer, module, batch, index):
            self.maximum = callback.learner.formats["model.0.input"].maximum.item()

    callback, first = LearnedBitwidth(**FOUR, calibration=[torch.zeros(4, 6) + 3]), First()
    fit(Inner(), callback, first, loaders=(loader(),), max_epochs=1, limit_train_batches=1)
    assert first.maximum == pytest.approx(3, rel=1e-3)


# Teachers


def test_a_penalty_pulls_towards_the_teacher():
    teacher, inputs = Classifier(seed=9), next(iter(loader()))[0]
    before = copy.deepcopy(teacher.state_dict())

    def distance(distillation):
        module, *_ = fit(Inner(), LearnedBitwidth(**FOUR, distillation=distillation), loaders=(loader(),), max_epochs=8)
        wanted, found = F.softmax(teacher(inputs), 1), F.softmax(module.model(inputs), 1)
        return (wanted - found).abs().mean().item()

    alone = distance(None)
    assert distance(Distillation(teacher, weight=20.0)) < alone
    assert distance(Distillation(teacher, "soft")) < alone
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())


def test_the_loss_of_training_step_is_the_distillations():
    teacher, shown = Classifier(seed=9), []

    class Watching(lightning.Callback):
        def on_before_backward(self, trainer, pl_module, loss):
            shown.append(loss.item())

    module = Classifier()
    distillation = Distillation(teacher, "penalty", weight=3.0, temperature=2.0)
    fit(module, LearnedBitwidth(weight_budget=Budget(bits=8), distillation=distillation), Watching(), max_steps=1)
    plain = []
    fit(Classifier(), LearnedBitwidth(weight_budget=Budget(bits=8)), _Losses(plain), max_steps=1)
    assert shown[0] > plain[0]
    assert "training_step" not in vars(module)


class _Losses(lightning.Callback):
    def __init__(self, shown):
        self.shown = shown

    def on_before_backward(self, trainer, pl_module, loss):
        self.shown.append(loss.item())


# Refusals


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"weight_budget": 4}, TypeError, "weight_budget must be an adapt.learned.Budget"),
        ({"phases": (0.5, 0.5)}, TypeError, "phases must be three shares"),
        ({"phases": (0.5, 0.4, 0.3)}, ValueError, "shares that sum to 1"),
        ({"phases": (1, 0, 1)}, ValueError, "learning above 0"),
        ({"phases": "all"}, TypeError, "phases must be three shares"),
        ({"calibration": 0}, ValueError, "calibration must be a number of batches"),
        ({"distillation": nn.Linear(1, 1)}, TypeError, "distillation must be an adapt.learned.Distillation"),
        ({"floor": 4}, ValueError, "floor must be 1 or 2"),
    ],
)
def test_bad_options_are_refused_at_once(options, kind, message):
    with pytest.raises(kind, match=message):
        LearnedBitwidth(**{**FOUR, **options})


@pytest.mark.parametrize(
    ("callback", "options", "kind", "message"),
    [
        (LearnedBitwidth(Budget(bits=1)), {}, ValueError, "weight_budget of 1 bits on average cannot be met"),
        (LearnedBitwidth(**FOUR, phases=(1, 1, 1)), {}, ValueError, "phases sum to 3 epochs, but .* max_epochs=5"),
        (LearnedBitwidth(**FOUR), {"max_epochs": -1}, ValueError, "must know how long the training takes"),
        (LearnedBitwidth(**FOUR), {"plugins": [Scaled()]}, NotImplementedError, "a scaler multiplies"),
    ],
    ids=range(4),
)
def test_what_cannot_work_is_refused_when_fit_starts(callback, options, kind, message):
    with pytest.raises(kind, match=message):
        fit(None, callback, **options)
    assert_nothing_attached()


@pytest.mark.parametrize("order", [1, -1])
def test_one_callback_alone(order):
    callbacks = [LearnedBitwidth(**FOUR), AdaptivePrecision()][::order]
    with pytest.raises(ValueError, match=r"several callbacks that set precision \(.*LearnedBitwidth.*\): keep one"):
        fit(None, *callbacks)


@pytest.mark.parametrize("finder", [LearningRateFinder(), BatchSizeFinder()], ids=["learning rate", "batch size"])
def test_finders_are_refused(finder):
    callback = LearnedBitwidth(**FOUR)
    with pytest.raises(NotImplementedError, match=f"{type(finder).__name__} would learn formats in each of its trials"):
        callback.setup(trainer(callback, finder), Classifier(), "fit")


def test_layers_that_are_unfrozen_during_fit_are_refused_before_it_starts():
    callback, freezing = LearnedBitwidth(**FOUR), BackboneFinetuning(unfreeze_backbone_at_epoch=2)
    with pytest.raises(NotImplementedError, match="BackboneFinetuning unfreezes layers during fit"):
        callback.setup(trainer(callback, freezing), Classifier(), "fit")


class Validated(Classifier):
    """Notes the outputs of its validation and test steps."""

    def __init__(self):
        super().__init__()
        self.outputs = []

    def validation_step(self, batch, index):
        self.outputs.append(self(batch[0]).detach().clone())

    test_step = validation_step


@pytest.mark.parametrize(
    "make",
    [
        lambda: LearnedBitwidth(weight_budget=Budget(bits=4), activation_budget=Budget(bits=2), update_every=2),
        lambda: AdaptivePrecision(adapt.AdaPT(lookback=(3, 9)), activations="layer"),
        lambda: AdaptivePrecision(adapt.Fixed(adapt.Precision(6, 4)), activations=4),
    ],
    ids=["learned", "layer", "range"],
)
def test_what_fit_validated_is_what_the_trainer_and_copies_see_afterwards(make):
    module, _, run = fit(Validated(), make(), max_epochs=4)
    within = torch.cat(module.outputs[-2:])
    for evaluate in (run.validate, run.test):
        module.outputs.clear()
        evaluate(module, loader(2), verbose=False)
        assert torch.equal(torch.cat(module.outputs), within)
    module.eval()
    for again in (copy.deepcopy(module), pickle.loads(pickle.dumps(module.net))):
        net = getattr(again, "net", again)
        assert torch.equal(torch.cat([net(batch[0]) for batch in loader(2)]), within)
    _, second, _ = fit(module, make(), max_epochs=1, limit_train_batches=1)
    assert second.controllers[0].step == 1


def test_without_an_optimizer_there_is_no_layer():
    with pytest.raises(ValueError, match=r"LearnedBitwidth found no layer to quantise: configure_optimizers must"):
        fit(Classifier(lambda module: None))


class Manual(Classifier):
    """Steps when it likes."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, index):
        self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
        if index % 2:
            self.optimizers().step()
            self.optimizers().zero_grad()


@pytest.mark.parametrize(
    ("make", "others", "reason"),
    [
        (Manual, (), "in manual optimization the module decides"),
        (Classifier, (GradientAccumulationScheduler({0: 1, 1: 2}),), "GradientAccumulationScheduler changes"),
    ],
    ids=["manual", "scheduler"],
)
def test_a_training_whose_steps_do_not_follow_from_its_epochs_needs_their_number(make, others, reason):
    with pytest.raises(ValueError, match=f"must know how many optimizer steps the training has, but {reason}.* max_st"):
        fit(make(), LearnedBitwidth(**FOUR), *others)
    assert_nothing_attached()
    _, callback, _ = fit(make(), LearnedBitwidth(**FOUR), *others, max_epochs=None, max_steps=10)
    assert callback.learner.step == callback.learner.plan.phases.total == 10
    assert callback.learner.size.weight_bits <= 4


class Stops(lightning.Callback):
    """Ends the training after so many batches, by a flag or by an error."""

    def __init__(self, batches, error=None):
        self.batches, self.error = batches, error

    def on_train_batch_end(self, trainer, *args):
        if trainer.fit_loop.epoch_loop.total_batch_idx + 1 == self.batches:
            if self.error is not None:
                raise self.error
            trainer.should_stop = True


@pytest.mark.covering(1)
@pytest.mark.parametrize("error", [None, ArithmeticError("enough")], ids=["stopped", "failed"])
@pytest.mark.parametrize(
    ("budgets", "sizes"),
    [
        ({}, "weights have 6 bits of 4 and activations have 6 bits of 4"),
        ({"weight_budget": Budget(kilobytes=0.04), "activation_budget": None}, "weights have 0.0.* kilobytes of 0.04:"),
    ],
    ids=["bits", "kilobytes"],
)
def test_a_training_that_ends_before_learning_has_met_the_budgets_says_so_once(budgets, sizes, error):
    with pytest.warns(UserWarning, match="training ended") as caught, contextlib.suppress(ArithmeticError):
        fit(None, LearnedBitwidth(**{**FOUR, **budgets}, phases=(0.3, 0.6, 0.1)), Stops(8, error))
    (warning,) = [w for w in caught if "training ended" in str(w.message)]
    assert re.match(
        f"training ended in pretraining, after 8 steps, before .* in step 14, so {sizes}", str(warning.message)
    )
    assert warning.filename == __file__


@pytest.mark.parametrize("batches", [18, 21])
def test_one_that_ends_after_the_budgets_are_met_says_nothing(batches, recwarn):
    _, callback, _ = fit(None, LearnedBitwidth(**FOUR), Stops(batches, None), min_epochs=None)
    assert callback.learner.size.weight_bits <= 4 * 1.01
    assert not [w for w in recwarn if "training ended" in str(w.message)]


def test_several_optimizers_are_refused():
    def two(module):
        return [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in (module.net[0], module.net[2])]

    module = Classifier(two)
    module.automatic_optimization = False
    with pytest.raises(NotImplementedError, match="needs one optimizer"):
        fit(module)


def test_there_is_no_learner_before_fit():
    with pytest.raises(RuntimeError, match="no learner before fit"):
        _ = LearnedBitwidth(**FOUR).learner


def test_losses_stay_finite():
    _, _, run = fit()
    assert math.isfinite(run.callback_metrics["loss"])
