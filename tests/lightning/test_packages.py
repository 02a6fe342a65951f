"""The callbacks in trainers of both of Lightning's packages, and where only one of them, or neither, is installed."""

import copy
import pickle

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
from torch import nn
from torch.nn import functional as F

import adapt
from adapt.learned import Budget, Distillation
from adapt.lightning import AdaptivePrecision, LearnedBitwidth
from tests.covering import picked
from tests.lightning.averaging import needs_averaging
from tests.lightning.modules import RESTLESS, ResumableLoader, Witness, assert_same_run, loader, sgd
from tests.processes import python

PACKAGES = (lightning.pytorch, pytorch_lightning)

# With lightning.pytorch the other tests of this folder show what these do with both.
both = pytest.mark.parametrize("package", picked({p.__name__: p for p in PACKAGES}, "pytorch_lightning"))


def classifier(package, forward=False):
    """Two layers in a LightningModule of the package, with or without a forward of its own."""

    class Classifier(package.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))

        def training_step(self, batch, index):
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def validation_step(self, batch, index):
            self.log("validation_loss", F.cross_entropy(self.net(batch[0]), batch[1]))

        def configure_optimizers(self):
            return sgd(self)

    if forward:
        Classifier.forward = lambda self, inputs: self.net(inputs)
    return Classifier()


def trainer(package, *callbacks, **options):
    options = {"max_epochs": 3, "logger": False, "enable_checkpointing": False, **options}
    return package.Trainer(
        accelerator="cpu", callbacks=list(callbacks), enable_progress_bar=False, enable_model_summary=False, **options
    )


@both
class TestInATrainerOfEither:
    def test_every_pass_is_on_the_grid_formats_move_and_the_loss_is_seen(self, package, tmp_path):
        callback, module = AdaptivePrecision(RESTLESS), classifier(package)
        witness = Witness(module, callback)
        logger = package.loggers.CSVLogger(tmp_path)
        run = trainer(package, callback, logger=logger, log_every_n_steps=1)
        run.fit(module, loader(), loader(2))
        witness.check("sanity_check", "train", "validate")
        trace = callback.trace
        assert trace.switches().any()
        assert len(trace) == 18
        assert callback.controller.state_dict()["state"]["losses"]
        assert {"adapt/mean_word_length", "adapt/training_speedup"} <= set(run.logged_metrics)
        assert adapt.Trace.load(tmp_path / "lightning_logs" / "version_0" / "trace.npz").step[-1] == 18

    def test_resuming_gives_the_same_bits(self, package, tmp_path):
        whole, resumed = AdaptivePrecision(RESTLESS), AdaptivePrecision(RESTLESS)
        keep = package.callbacks.ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=4)
        trainer(package, whole, keep, enable_checkpointing=True).fit(classifier(package), ResumableLoader(), loader(2))
        module = classifier(package)
        trainer(package, resumed).fit(module, ResumableLoader(), loader(2), ckpt_path=tmp_path / "step=8.ckpt")
        assert resumed.controller.step == 18
        assert_same_run(resumed.controller, whole.controller)

    @needs_averaging
    def test_weight_averaging_averages_the_masters(self, package):
        callback, module = AdaptivePrecision(RESTLESS), classifier(package)
        averaging = package.callbacks.EMAWeightAveraging(decay=0.5)
        run = trainer(package, callback, averaging)
        witness = Witness(module, callback)
        run.fit(module, loader())
        witness.check("train")
        assert run.callbacks == [callback, averaging]
        for name, form in callback.controller.precisions.items():
            weight = module.get_parameter(name)
            assert torch.equal(weight, adapt.quantize(weight, form))

    def test_what_trains_off_the_grid_is_refused(self, package):
        averaging = package.callbacks.StochasticWeightAveraging(0.1)
        with pytest.raises(NotImplementedError, match="use the callback WeightAveraging"):
            trainer(package, AdaptivePrecision(), averaging).fit(classifier(package), loader())

    def test_a_scheduler_of_accumulation_is_noticed(self, package):
        changing = package.callbacks.GradientAccumulationScheduler({0: 1, 1: 2})
        with pytest.raises(ValueError, match="GradientAccumulationScheduler changes their number"):
            trainer(package, AdaptivePrecision(adapt.MuPPET()), changing).fit(classifier(package), loader())

    @pytest.mark.parametrize("forward", [False, True])
    def test_learned_widths_calibrate_and_learn(self, package, forward):
        callback = LearnedBitwidth(Budget(bits=4), Budget(bits=6), calibration=2)
        trainer(package, callback, max_epochs=4).fit(classifier(package, forward), loader())
        assert callback.learner.is_calibrated
        assert callback.learner.size.weight_bits <= 4

    @pytest.mark.covering(1)
    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda callback: pickle.loads(pickle.dumps(callback))])
    @pytest.mark.parametrize(
        "make",
        [
            lambda: AdaptivePrecision(RESTLESS, 1e-4, log_internals=True, activations="range", layer_bits={"net.0": 5}),
            lambda: LearnedBitwidth(
                Budget(bits=4),
                Budget(bits=6),
                calibration=[x for x, _ in loader(2)],
                distillation=Distillation(nn.Linear(6, 3), "soft"),
            ),
        ],
        ids=["adaptive", "learned"],
    )
    @pytest.mark.filterwarnings("ignore:no bit width moved")
    def test_copies_from_before_within_and_after_fit_train_alike(self, package, make, copied, tmp_path):
        class Copies(package.Callback):
            def on_train_batch_end(self, *args):
                copies.append(copied(callback))

        torch.manual_seed(1)
        callback = make()
        copies = [copied(callback)]
        logger = package.loggers.CSVLogger(tmp_path)
        trainer(package, callback, Copies(), max_epochs=1, logger=logger).fit(classifier(package), loader())
        copies.append(copied(callback))
        assert len(copies) == 8
        for other in copies:
            assert other.controllers == []
        for other in (copies[0], copies[1], copies[-1]):
            trainer(package, other, max_epochs=1).fit(classifier(package), loader())
            assert_same_run(other.controller, callback.controller)

    def test_learned_widths_refuse_finders(self, package):
        finder = package.callbacks.LearningRateFinder()
        with pytest.raises(NotImplementedError, match="LearningRateFinder would learn formats"):
            trainer(package, LearnedBitwidth(Budget(bits=4)), finder).fit(classifier(package), loader())

    def test_a_single_callback_is_one_of_the_package(self, package):
        callback = AdaptivePrecision()
        run = package.Trainer(accelerator="cpu", callbacks=callback, logger=False, enable_checkpointing=False)
        assert callback in run.callbacks


TRAINS = """
import sys
for name in {missing}:
    sys.modules[name] = None
import torch
import {package} as package
from torch import nn
import adapt
from adapt.learned import Budget
from adapt.lightning import AdaptivePrecision, LearnedBitwidth

class Module(package.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(6, 3)

    def training_step(self, batch, index):
        return self.net(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())

data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(16, 6)), 4)
for callback in (AdaptivePrecision(adapt.AdaPT(lookback=(2, 4))), LearnedBitwidth(Budget(bits=4), Budget(bits=6))):
    trainer = package.Trainer(
        accelerator="cpu", max_epochs=2, callbacks=[callback], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )
    trainer.fit(Module(), data)
    assert callback.controller.step == 8
"""


@pytest.mark.parametrize(
    ("package", "missing"),
    [
        pytest.param("lightning.pytorch", ["pytorch_lightning", "lightning_fabric"], marks=pytest.mark.long),
        ("pytorch_lightning", ["lightning"]),
    ],
)
def test_neither_package_needs_the_other(package, missing):
    run(TRAINS.format(package=package, missing=missing))


@pytest.mark.long
def test_a_broken_package_is_no_obstacle(tmp_path):
    (tmp_path / "pytorch_lightning.py").write_text("import nothing_that_there_is")
    run(f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n" + TRAINS.format(package="lightning.pytorch", missing=[]))


def test_without_either_the_import_says_what_to_install():
    run(
        "import sys; sys.modules.update(dict.fromkeys(['lightning', 'pytorch_lightning']))\n"
        "try:\n    import adapt.lightning\nexcept ImportError as error:\n    assert 'pip install' in str(error)\n"
        "else:\n    raise SystemExit('imported')"
    )


@pytest.mark.long
@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_the_logger_stays_that_of_the_package_that_was_imported_first(package):
    run(
        f"import logging, {package}, adapt.lightning\nfrom lightning_utilities.core import rank_zero\n"
        f"assert rank_zero.log.name == '{package}.utilities.rank_zero', rank_zero.log"
    )


def run(code):
    result = python("-c", code)
    assert result.returncode == 0, result.stderr[-2000:]
