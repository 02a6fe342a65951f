"""Lightning's other features: finders, weight averaging, strategies, and what is refused with a clear sentence."""

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Callback,
    LearningRateFinder,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.tuner import Tuner
from torch import nn

import adapt
from adapt.learned import Budget
from adapt.lightning import AdaptivePrecision, LearnedBitwidth
from adapt.lightning.averaging import AfterAveraging, BeforeAveraging
from tests.lightning.averaging import EMAWeightAveraging, WeightAveraging, needs_averaging
from tests.lightning.modules import (
    BATCHES,
    RELEASE,
    Adversaries,
    Classifier,
    WithData,
    Witness,
    assert_nothing_attached,
    assert_same_run,
    fit,
    loader,
    precision,
    same,
    trainer,
    weights,
)
from tests.processes import python
from tests.training import is_on_grid


class TestFinders:
    def look(self, module, callback, find):
        """What a tuner finds, with the witness of its forward passes; the module must be as before."""
        before = weights(module)
        witness = Witness(module, callback)
        run = trainer(callback, max_epochs=2)
        answer = find(Tuner(run))
        assert not witness.problems
        assert witness.passes["train"] > 0
        assert same(weights(module), before)
        assert_nothing_attached()
        return answer, run

    def test_the_learning_rate_is_found_on_the_grid_and_nothing_stays(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        module, callback = WithData(), precision()
        found, _ = self.look(module, callback, lambda tuner: tuner.lr_find(module, num_training=30))
        assert len(found.results["loss"]) > 10

    def test_the_batch_size_is_found_on_the_grid_and_nothing_stays(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        module, callback = WithData(), precision()
        found, _ = self.look(module, callback, lambda tuner: tuner.scale_batch_size(module, max_trials=2))
        assert found == module.batch_size >= 4

    def test_a_fit_after_a_tuner_is_the_same_as_one_without(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        module, callback = WithData(), precision()
        _, run = self.look(module, callback, lambda tuner: tuner.lr_find(module, num_training=10, update_attr=False))
        run.fit(module)
        reference, _ = fit(WithData(), max_epochs=2)
        assert_same_run(callback.controller, reference.controller)

    @pytest.mark.parametrize(
        "finder",
        [
            pytest.param(
                LearningRateFinder(num_training_steps=10, update_attr=False),
                id="learning rate",
                marks=pytest.mark.skipif(RELEASE < (2, 5), reason="Lightning's own fit is too short"),
            ),
            pytest.param(
                BatchSizeFinder(max_trials=1, init_val=4, batch_arg_name="batch_size"),
                id="batch size",
                marks=pytest.mark.skipif(RELEASE < (2, 6), reason="Lightning's own fit is too short"),
            ),
        ],
    )
    def test_a_finder_within_fit_leaves_no_trace(self, finder, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        module, callback = WithData(), precision()
        trainer(finder, callback, max_epochs=2).fit(module)
        reference, _ = fit(WithData(), max_epochs=2)
        assert_same_run(callback.controller, reference.controller)


class Spy(Callback):
    """Keeps the mean of the weights that a fair averaging would have."""

    def __init__(self, callback):
        self.callback, self.seen = callback, []

    def on_train_batch_end(self, trainer, module, *args):
        self.seen.append({name: m.clone() for name, m in self.callback.controller.masters.items()})


class Keeps(Callback):
    """Keeps the weights that it finds whenever a checkpoint is made."""

    state_key = property(lambda self: str(id(self)))

    def __init__(self):
        self.held = []

    def on_save_checkpoint(self, trainer, module, checkpoint):
        self.held.append(weights(module))


@needs_averaging
class TestWeightAveraging:
    def test_masters_are_averaged_and_their_mean_is_evaluated_on_the_grid(self):
        class Looks(Classifier):
            evaluated = ()

            def validation_step(self, batch, index):
                super().validation_step(batch, index)
                self.evaluated = weights(self)
                assert all(is_on_grid(self.evaluated[n], p) for n, p in callback.controller.precisions.items())

        module, callback = Looks(), precision()
        spy, averaging = Spy(callback), WeightAveraging()
        witness = Witness(module, callback)
        _, run = fit(module, callback, averaging, spy, max_epochs=2)
        assert not [p for p in witness.problems if "off the grid" in p]
        for name, form in callback.controller.precisions.items():
            mean = torch.stack([masters[name] for masters in spy.seen]).mean(0)
            average = averaging._average_model.module.get_parameter(name)
            torch.testing.assert_close(average, mean)
            assert not is_on_grid(average, form)
            assert torch.equal(module.evaluated[name], adapt.quantize(average, form))
            assert torch.equal(module.get_parameter(name), adapt.quantize(average, form))
        assert not [c for c in run.callbacks if isinstance(c, BeforeAveraging | AfterAveraging)]

    def test_training_is_the_same_run_as_without(self):
        callback, _ = fit(Classifier(), None, EMAWeightAveraging(decay=0.9), val_check_interval=2)
        reference, _ = fit(Classifier(), val_check_interval=2)
        assert_same_run(callback.controller, reference.controller)

    @pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
    def test_two_optimizers_and_both_roundings(self, rounding):
        module, callback = Adversaries(), precision(rounding=rounding)
        witness = Witness(module, callback)
        fit(module, callback, EMAWeightAveraging(decay=0.9))
        assert not [p for p in witness.problems if "off the grid" in p]
        reference, _ = fit(Adversaries(), precision(rounding=rounding))
        for first, second in zip(callback.controllers, reference.controllers, strict=True):
            assert_same_run(first, second)

    def test_a_resumed_run_has_the_same_mean(self, tmp_path):
        def train(folder, ckpt_path=None):
            callback, averaging = precision(), EMAWeightAveraging(decay=0.9)
            keep = ModelCheckpoint(folder, "{step}", save_top_k=-1)
            fit(Classifier(), callback, averaging, keep, ckpt_path=ckpt_path, enable_checkpointing=True)
            return callback.controller, weights(averaging._average_model)

        controller, mean = train(tmp_path / "a")
        resumed, resumed_mean = train(tmp_path / "b", tmp_path / "a" / f"step={BATCHES}.ckpt")
        assert_same_run(controller, resumed)
        assert same(mean, resumed_mean)

    @pytest.mark.parametrize(
        "callback",
        [
            lambda: precision(adapt.Fixed(adapt.Precision(4, 2))),
            lambda: precision(adapt.MuPPET(steps_per_epoch=99), quantize_biases=True),
            lambda: LearnedBitwidth(Budget(bits=4), phases=(0.1, 0.5, 0.4), update_every=2),
        ],
        ids=["fixed point", "block floating point", "learned"],
    )
    def test_a_checkpoint_holds_what_was_monitored(self, callback, tmp_path):
        keep, averaging = ModelCheckpoint(tmp_path, monitor="validation_loss"), EMAWeightAveraging(decay=0.8)
        before, after = Keeps(), Keeps()
        others = (before, averaging, after, keep)
        fit(Classifier(), callback(), *others, enable_checkpointing=True, loaders=(loader(), loader(5)))
        (found,) = trainer().validate(Classifier(), loader(5), keep.best_model_path, verbose=False)
        assert found["validation_loss"] == pytest.approx(float(keep.best_model_score), rel=1e-6)
        # Saving changes no weight.
        assert before.held
        assert all(same(one, other) for one, other in zip(before.held, after.held, strict=True))
        saved = torch.load(keep.best_model_path, weights_only=True)
        for name, mean in saved["adapt_mean"].items():
            assert mean.shape == saved["state_dict"][name].shape
            assert not torch.equal(mean, saved["state_dict"][name])

    @pytest.mark.parametrize("hook", ["on_train_batch_end", "on_validation_epoch_start", "on_validation_epoch_end"])
    def test_an_exception_in_it_leaves_the_masters_rounded(self, hook):
        class Broken(WeightAveraging):
            pass

        def fail(self, trainer, *args):
            if trainer.sanity_checking:
                return getattr(WeightAveraging, hook)(self, trainer, *args)
            raise RuntimeError("no mean today")

        setattr(Broken, hook, fail)
        module, callback = Classifier(), precision()
        with pytest.raises(RuntimeError, match="no mean today"):
            fit(module, callback, Broken())
        controller = callback.controller
        expected = {n: adapt.quantize(m, controller.precisions[n]) for n, m in controller.masters.items()}
        # What the callback still held open would now be closed, and write into the parameters.
        del callback, controller, module.trainer.callbacks
        assert_nothing_attached()
        assert all(torch.equal(module.get_parameter(name), weight) for name, weight in expected.items())

    def test_the_other_callback_is_refused_by_name(self):
        with pytest.raises(NotImplementedError, match=r"StochasticWeightAveraging .*use .*WeightAveraging"):
            fit(Classifier(), None, StochasticWeightAveraging(swa_lrs=0.01))
        assert_nothing_attached()


class TestRefusals:
    @pytest.mark.parametrize("kind", [FSDPStrategy, DeepSpeedStrategy, ModelParallelStrategy])
    def test_strategies_that_shard(self, kind):
        run, callback = trainer(), precision()
        run.strategy.__class__ = kind
        with pytest.raises(NotImplementedError, match=f'{kind.__name__} shards .* use strategy="ddp'):
            callback.setup(run, Classifier(), "fit")

    def test_lbfgs(self):
        module = Classifier(lambda m: torch.optim.LBFGS(m.parameters()))
        with pytest.raises(ValueError, match="LBFGS evaluates the loss several times"):
            fit(module)
        assert_nothing_attached()

    def test_no_optimizer(self):
        with pytest.raises(
            ValueError, match=r"AdaptivePrecision found no layer to quantise: configure_optimizers must"
        ):
            fit(Classifier(lambda m: None))

    def test_no_layer_in_any_of_several_optimizers(self):
        class OnlyBiases(Adversaries):
            def configure_optimizers(self):
                return [
                    torch.optim.SGD([p for p in part.parameters() if p.ndim < 2], lr=0.1) for part in self.children()
                ]

        with pytest.raises(ValueError, match="found no layer to quantise: configure_optimizers must return"):
            fit(OnlyBiases())

    def test_an_optimizer_without_layers_beside_one_with_layers_is_left_alone(self):
        class Parts(Adversaries):
            def configure_optimizers(self):
                first = super().configure_optimizers()[0]
                return [first, torch.optim.SGD([self.discriminator.bias], lr=0.1)]

        callback, run = fit(Parts())
        assert [controller.optimizer for controller in callback.controllers] == [run.optimizers[0]]

    def test_nothing_stays_attached_when_the_second_optimizer_is_refused(self):
        class Halves(Adversaries):
            def configure_optimizers(self):
                return [
                    torch.optim.SGD(self.generator.parameters()),
                    torch.optim.LBFGS(self.discriminator.parameters()),
                ]

        module = Halves()
        before = weights(module)
        callback = precision()
        with pytest.raises(ValueError, match="LBFGS"):
            fit(module, callback)
        assert callback.controllers == []
        assert same(weights(module), before)
        assert_nothing_attached()

    def test_half_precision_weights(self):
        with pytest.raises(TypeError, match=r"net.0.weight is torch.bfloat16"):
            fit(Classifier(), precision="bf16-true")
        assert_nothing_attached()

    def test_the_callback_twice(self):
        class Mine(AdaptivePrecision):
            pass

        for other in (precision(), Mine()):
            with pytest.raises(ValueError, match=r"several callbacks that set precision \(.*\): keep one, which"):
                fit(Classifier(), other, precision())

    def test_lazy_layers_are_told_to_take_shape_first(self):
        def lazy(module):
            module.net = nn.Sequential(nn.LazyLinear(3))
            return torch.optim.SGD(module.parameters(), lr=0.1)

        with pytest.raises(TypeError, match="has no shape yet"):
            fit(Classifier(lazy))

    @pytest.mark.parametrize(
        ("options", "kind", "message"),
        [
            ({"l1": -1.0}, ValueError, "l1 must be"),
            ({"rounding": "up"}, ValueError, "rounding must be"),
            ({"policy": adapt.AdaPT}, TypeError, "policy must be a policy such as"),
        ],
    )
    def test_nonsense_settings_are_refused_at_once(self, options, kind, message):
        with pytest.raises(kind, match=message):
            AdaptivePrecision(**options)


class TestARunThatIsTooShort:
    def test_is_warned_about(self):
        with pytest.warns(UserWarning, match=r"shortest lookback is 25 steps and the run has 18.*lookback such as"):
            fit(Classifier(), AdaptivePrecision())

    @pytest.mark.parametrize(
        ("policy", "options"),
        [
            (adapt.AdaPT(lookback=(18, 100)), {}),
            (adapt.Fixed(adapt.Precision(8, 4)), {}),
            (adapt.AdaPT(), {"fast_dev_run": True}),
            (adapt.AdaPT(), {"max_epochs": -1, "max_steps": 30}),
        ],
        ids=["long enough", "no lookback", "fast_dev_run", "a limit of steps"],
    )
    def test_others_are_not(self, policy, options, recwarn):
        fit(Classifier(), AdaptivePrecision(policy), **options)
        assert not [w for w in recwarn if "lookback" in str(w.message)]


def test_importing_adapt_imports_no_lightning():
    code = "import sys, adapt; assert not {'lightning', 'tensorboard', 'matplotlib'} & set(sys.modules)"
    result = python("-c", code)
    assert result.returncode == 0, result.stderr


def test_the_callback_stands_first_and_the_others_keep_their_order():
    first, second = Spy(None), Spy(None)
    callback = precision()
    run = trainer(first, callback, second)
    callback.setup(run, Classifier(), "fit")
    assert run.callbacks == [callback, first, second]


def test_validation_alone_changes_nothing():
    module, callback = Classifier(), precision()
    before = weights(module)
    run = trainer(callback)
    run.validate(module, loader(2), verbose=False)
    run.test(module, loader(2), verbose=False)
    run.predict(module, loader(2).dataset.tensors[0][None])
    assert same(weights(module), before)
    assert isinstance(run, lightning.Trainer)
