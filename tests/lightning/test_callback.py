"""Every way of training in Lightning keeps every forward pass on the grid, and fit leaves the module as promised."""

import copy
import pickle

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger
from torch.nn import functional as F

import adapt
from adapt.learned import Budget
from adapt.lightning import LearnedBitwidth
from tests.covering import picked
from tests.lightning.averaging import EMAWeightAveraging, needs_averaging
from tests.lightning.modules import (
    BATCHES,
    RESTLESS,
    Adversaries,
    Classifier,
    Scaled,
    Witness,
    assert_nothing_attached,
    assert_same_run,
    data,
    fit,
    in_a_plain_loop,
    loader,
    precision,
    same,
    sgd,
    trainer,
    weights,
)
from tests.training import is_on_grid

EVERY_STAGE = ("sanity_check", "train", "validate", "test")


def plateau(module):
    optimizer = sgd(module)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=1.0)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": "validation_loss"}}


def one_cycle(module):
    optimizer = sgd(module)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=3 * BATCHES)
    return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def several_groups(module):
    first, second = module.net[0], module.net[2]
    return torch.optim.SGD([{"params": first.parameters()}, {"params": second.parameters(), "lr": 0.01}], lr=0.05)


WAYS = {
    "as it comes": {},
    "accumulation": {"accumulate_grad_batches": 2},
    "accumulation with a shorter end": {"accumulate_grad_batches": 4},
    "clipping by norm": {"gradient_clip_val": 0.1},
    "clipping by value": {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "a scaler": {"plugins": Scaled()},
    "a scaler, accumulation and clipping": {
        "plugins": Scaled(),
        "accumulate_grad_batches": 2,
        "gradient_clip_val": 1.0,
    },
    "validation in the middle": {"val_check_interval": 0.5},
    "validation in the middle of an accumulation": {"val_check_interval": 3, "accumulate_grad_batches": 2},
    "anomaly detection": {"detect_anomaly": True},
    "deterministic": {"deterministic": True},
    "few batches over and over": {"overfit_batches": 4},
    "no inference mode": {"inference_mode": False},
    "a profiler": {"profiler": "simple"},
}

QUICK_WAYS = (
    "as it comes",
    "accumulation with a shorter end",
    "clipping by value",
    "bf16-mixed",
    "a scaler, accumulation and clipping",
    "validation in the middle of an accumulation",
    "few batches over and over",
)

OPTIMIZERS = {
    "AdamW": lambda module: torch.optim.AdamW(module.parameters(), lr=0.01),
    "fused Adam": lambda module: torch.optim.Adam(module.parameters(), lr=0.01, fused=True),
    "foreach SGD": lambda module: torch.optim.SGD(module.parameters(), lr=0.05, foreach=True),
    "several groups": several_groups,
    "plateau": plateau,
    "one cycle": one_cycle,
}


def assert_on_grid_everywhere(module, **options):
    callback = precision()
    witness = Witness(module, callback)
    before = weights(module)
    _, run = fit(module, callback, **options)
    run.test(module, loader(2), verbose=False)
    witness.check(*EVERY_STAGE)
    for controller in callback.controllers:
        assert controller.step == len(controller.trace) > 0
        assert controller.trace.switches().any(), "no format moved, which would prove little"
        assert not any(torch.equal(master, before[name]) for name, master in controller.masters.items())
    return callback


@pytest.mark.parametrize("options", picked(WAYS, *QUICK_WAYS))
def test_every_forward_pass_is_on_the_grid(options):
    assert_on_grid_everywhere(Classifier(), **options)


@pytest.mark.parametrize("configure", picked(OPTIMIZERS, "fused Adam", "several groups", "plateau"))
def test_every_forward_pass_is_on_the_grid_under(configure):
    assert_on_grid_everywhere(Classifier(configure))


@pytest.mark.parametrize("toggle", [False, True], ids=["free", "toggled"])
def test_manual_optimization_with_two_optimizers(toggle):
    module = Adversaries(toggle)
    callback = assert_on_grid_everywhere(module)
    assert len(callback.controllers) == 2
    for controller, name in zip(callback.controllers, ("generator", "discriminator"), strict=True):
        assert list(controller.masters) == [f"{name}.weight"]
        losses = controller.state_dict()["state"]["losses"]
        assert len(losses) == RESTLESS.lookback[1]
        # The penalties belong to the loss that the strategy sees: WL/32 times the share of non-zeros, at most 1.
        shown = module.shown[name][-len(losses) :]
        assert all(0 < seen - loss <= 1 for seen, loss in zip(losses, shown, strict=True))
        assert [seen - float(p) for seen, p in zip(losses, _penalties(controller, len(losses)), strict=True)] == (
            pytest.approx(shown, abs=1e-6)
        )


def _penalties(controller, count):
    """P at each of the last steps: of the state that the step's forward pass saw, which the row before describes."""
    trace = controller.trace
    rows = slice(-count - 1, -1)
    return (trace.word_length[rows] * trace.nonzero[rows]).mean(axis=1) / 32


def test_fast_dev_run():
    module, callback = Classifier(), precision()
    witness = Witness(module, callback)
    fit(module, callback, fast_dev_run=True)
    witness.check("train", "validate")
    assert callback.controller.step == 1


def test_a_module_without_validation_and_a_monitor_of_rates(tmp_path):
    class Bare(Classifier):
        validation_step = lightning.LightningModule.validation_step

    module, callback = Bare(), precision()
    witness = Witness(module, callback)
    logger = CSVLogger(tmp_path)
    trainer(callback, LearningRateMonitor(), logger=logger, log_every_n_steps=1).fit(module, loader())
    witness.check("train")


def test_early_stopping_on_what_the_callback_logs():
    stop = EarlyStopping("adapt/mean_word_length", mode="min", patience=2, check_on_train_epoch_end=False)
    _, run = fit(Classifier(), None, stop, max_epochs=30, val_check_interval=2)
    assert stop.stopped_epoch or run.current_epoch < 30
    assert float(run.callback_metrics["adapt/mean_word_length"]) >= 2


def test_a_module_that_uses_its_weights_without_a_forward_pass_validates_at_nearest():
    class Direct(Classifier):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(3, 6))
            self.seen = {"train": [], "validate": []}

        def look(self):
            self.seen[self.trainer.state.stage.value].append(self.weight.detach().clone())
            return self.weight

        def training_step(self, batch, index):
            return F.cross_entropy(F.linear(batch[0], self.look()), batch[1])

        def validation_step(self, batch, index):
            master = callback.controller.masters["weight"]
            assert torch.equal(self.look(), adapt.quantize(master, callback.controller.precisions["weight"]))

    module, callback = Direct(), precision(adapt.Fixed(adapt.Precision(6, 4)))
    fit(module, callback, val_check_interval=2, num_sanity_val_steps=0)
    assert len(module.seen["validate"]) == 3 * 3 * 2
    steps = 2.0**4
    assert all(torch.equal(seen * steps, (seen * steps).round()) for seen in module.seen["train"])
    # Training goes on with the very weights that it had before validation, not with the nearest ones.
    assert not any(torch.equal(a, b) for a in module.seen["train"] for b in module.seen["validate"])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_plain_loop_and_lightning_are_the_same_run(accumulate):
    module = Classifier()
    callback, _ = fit(module, precision(l1=1e-3, l2=1e-3, seed=5), accumulate_grad_batches=accumulate)

    net = Classifier().net
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    controller = adapt.attach(optimizer, torch.nn.ModuleDict({"net": net}), RESTLESS, l1=1e-3, l2=1e-3, seed=5)
    for _ in range(3):
        for index, (inputs, targets) in enumerate(loader()):
            if index % accumulate == 0:
                optimizer.zero_grad()
            loss = F.cross_entropy(net(inputs), targets)
            (loss / accumulate).backward()
            controller.observe(loss)
            if (index + 1) % accumulate == 0:
                optimizer.step()
    assert_same_run(callback.controller, controller)
    assert callback.controller.state_dict()["state"]["losses"] == controller.state_dict()["state"]["losses"]


def test_the_scale_of_amp_is_not_in_the_loss():
    scaled, _ = fit(Classifier(), plugins=Scaled())
    free, _ = fit(Classifier(), precision="bf16-mixed")
    first, second = (c.controller.state_dict()["state"]["losses"] for c in (scaled, free))
    assert first == pytest.approx(second, rel=1e-6)


def test_steps_that_a_scaler_skips_are_no_steps():
    class Exploding(Classifier):
        def training_step(self, batch, index):
            loss = super().training_step(batch, index)
            return loss * 1e37 if index in (0, 3) else loss

    module, callback = Exploding(), precision()
    witness = Witness(module, callback)
    fit(module, callback, plugins=Scaled(), max_epochs=1)
    assert callback.controller.step == BATCHES - 2
    assert not witness.problems
    assert all(loss < 100 for loss in callback.controller.state_dict()["state"]["losses"])
    assert len(callback.controller.state_dict()["state"]["losses"]) == BATCHES - 2


class TestTheEnd:
    def test_the_module_keeps_the_masters_rounded_to_nearest(self):
        module = Classifier()
        callback, _ = fit(module)
        for name, master in callback.controller.masters.items():
            expected = adapt.quantize(master, callback.controller.precisions[name])
            assert torch.equal(module.get_parameter(name), expected)
        assert_nothing_attached()

    def test_fit_may_run_again(self):
        module, callback = Classifier(), precision()
        run = trainer(callback)
        run.fit(module, loader(), loader(2))
        first, left = callback.controller, weights(module)
        run.fit_loop.max_epochs += 2
        witness = Witness(module, callback)
        run.fit(module, loader(), loader(2))
        assert callback.controller is not first
        assert callback.controller.step == 2 * BATCHES
        assert callback.trace.step[0] == 1
        assert not same(weights(module), left)
        witness.check("sanity_check", "train", "validate")
        assert_nothing_attached()

    def test_one_callback_serves_two_modules_in_turn(self):
        callback = precision()
        fit(Classifier(), callback)
        first = callback.controller
        module = Classifier()
        fit(module, callback)
        assert_same_run(first, callback.controller)

    @pytest.mark.parametrize(
        "hook",
        picked(
            ["training_step", "validation_step", "on_train_epoch_end", "optimizer_step"],
            "training_step",
            "validation_step",
        ),
    )
    def test_an_exception_detaches(self, hook):
        class Broken(Classifier):
            calls = 0

        def fail(self, *args, **kwargs):
            self.calls += 1
            if self.calls > (4 if hook == "training_step" else 0) and not self.trainer.sanity_checking:
                raise RuntimeError("the module is broken")
            return getattr(Classifier, hook)(self, *args, **kwargs)

        setattr(Broken, hook, fail)
        module, callback = Broken(), precision()
        before = weights(module)
        with pytest.raises(RuntimeError, match="the module is broken"):
            fit(module, callback)
        assert_nothing_attached()
        if callback.controller.step:
            assert callback.controller.step == len(callback.trace)
            for name, master in callback.controller.masters.items():
                expected = adapt.quantize(master, callback.controller.precisions[name])
                assert torch.equal(module.get_parameter(name), expected)
        else:
            assert same(weights(module), before)

    def test_an_exception_inside_the_update_detaches(self):
        class Failing(torch.optim.SGD):
            def step(self, closure=None):
                if self.state:
                    closure()
                    raise RuntimeError("no update today")
                return super().step(closure)

        module = Classifier(lambda m: Failing(m.parameters(), lr=0.1, momentum=0.9))
        callback = precision()
        with pytest.raises(RuntimeError, match="no update today"):
            fit(module, callback)
        assert_nothing_attached()
        for name, master in callback.controller.masters.items():
            assert torch.equal(module.get_parameter(name), adapt.quantize(master, callback.controller.precisions[name]))

    def test_an_interrupt_detaches(self):
        class Impatient(Classifier):
            def on_train_batch_start(self, batch, index):
                if index == 3:
                    raise KeyboardInterrupt

        callback = precision()
        with pytest.raises(SystemExit):
            fit(Impatient(), callback)
        assert callback.controller.step == 3
        assert_nothing_attached()

    def test_a_fit_that_makes_no_step_leaves_the_weights_as_they_were(self):
        module = Classifier()
        before = weights(module)
        callback, _ = fit(module, max_epochs=0)
        assert callback.controller.step == 0
        assert same(weights(module), before)
        assert_nothing_attached()

    def test_before_any_fit_there_is_no_controller(self):
        with pytest.raises(RuntimeError, match="no controller before fit starts"):
            _ = precision().trace

    def test_a_strategy_of_other_processes_leaves_it_there(self):
        # What fit under ddp_spawn or ddp_fork leaves in the process that called it.
        with pytest.raises(RuntimeError, match=r"ddp_spawn or ddp_fork leaves it in the processes that it starts"):
            _ = precision().controller

    def test_with_two_optimizers_there_is_not_the_one_controller(self):
        callback, _ = fit(Adversaries())
        with pytest.raises(RuntimeError, match="2 controllers"):
            _ = callback.trace


def pickled(callback):
    """A copy through a pickle."""
    return pickle.loads(pickle.dumps(callback))


class TestCopies:
    """A copy has the settings and none of the controllers, whose tensors belong to one module and its optimizer."""

    @pytest.mark.covering(1)
    @pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickled])
    @pytest.mark.parametrize("make", [precision, lambda: LearnedBitwidth(Budget(bits=4))], ids=["adaptive", "learned"])
    @pytest.mark.filterwarnings("ignore:no bit width moved")
    def test_before_within_and_after_fit(self, make, copied):
        class Copies(Classifier):
            def on_train_batch_end(self, *args):
                copies.append(copied(callback))

        callback = make()
        copies = [copied(callback)]
        fit(Copies(), callback, max_epochs=1)
        copies.append(copied(callback))
        assert len(copies) == BATCHES + 2
        assert callback.controllers[0].step == BATCHES
        for other in copies:
            assert other.controllers == []
        for other in (copies[1], copies[-1]):
            fit(Classifier(), other, max_epochs=1)
            assert_same_run(other.controllers[0], callback.controllers[0])


class TestAController:
    """An optimizer that brings its own."""

    def configure(self, **options):
        return lambda module: adapt.ASGD(module, lr=0.05, momentum=0.9, policy=RESTLESS, **options)

    def test_is_adopted_and_not_attached_a_second_time(self, recwarn):
        callback = precision(None)
        module = Classifier(self.configure(seed=3))
        witness = Witness(module, callback)
        _, run = fit(module, callback)
        witness.check("sanity_check", "train", "validate")
        assert callback.controller is run.optimizers[0].controller
        assert not [w for w in recwarn if "controller of its own" in str(w.message)]
        reference, _ = fit(Classifier(), precision(seed=3))
        assert_same_run(callback.controller, reference.controller)
        assert_nothing_attached()

    def test_does_not_take_the_callbacks_settings_and_says_so(self):
        with pytest.warns(UserWarning, match="do not apply: give them to adapt.ASGD"):
            callback, _ = fit(Classifier(self.configure(l1=0.0)), precision(adapt.AdaPT(), l1=5.0))
        reference, _ = fit(Classifier())
        assert_same_run(callback.controller, reference.controller)

    def test_is_detached_so_that_fit_may_run_again(self):
        module, callback = Classifier(self.configure()), precision(None)
        run = trainer(callback)
        run.fit(module, loader(), loader(2))
        run.fit_loop.max_epochs += 1
        run.fit(module, loader(), loader(2))
        assert callback.controller.step == BATCHES

    def test_that_is_gone_is_refused(self):
        module = Classifier()
        optimizer = self.configure()(module)
        module.configure = lambda _: optimizer
        fit(module, precision(None))
        with pytest.raises(ValueError, match=r"adapt.ASGD without a controller.*make a new one"):
            fit(module, precision(None))
        assert_nothing_attached()

    def test_that_attach_made_is_adopted_too(self):
        def configure(module):
            optimizer = sgd(module)
            adapt.attach(optimizer, module, adapt.Fixed(adapt.Precision(5, 3)))
            return optimizer

        callback, _ = fit(Classifier(configure), precision(None))
        assert set(callback.controller.precisions.values()) == {adapt.Precision(5, 3)}


def test_what_is_frozen_or_no_layer_is_left_alone():
    module = Classifier()
    module.net[0].weight.requires_grad_(False)
    before = weights(module)
    callback, _ = fit(module)
    assert list(callback.controller.masters) == ["net.2.weight"]
    assert torch.equal(module.net[0].weight, before["net.0.weight"])


def test_options_reach_the_controller():
    options = {"rounding": "nearest", "layers": lambda name, p: name == "net.0.weight", "trace_every": 2}
    callback, _ = fit(Classifier(), precision(quantize_biases=True, l1_by_word_length=True, l1=1e-4, **options))
    assert list(callback.controller.masters) == ["net.0.weight"]
    assert (callback.trace.step % 2 == 0).all()
    assert callback.controller.state_dict()["stochastic"] is False
    assert callback.controller.state_dict()["followers"].keys() == {"net.0.bias", "net.2.bias"}


def test_bits_by_hand_reach_the_controller_as_yaml_has_them():
    callback, _ = fit(Classifier(), precision(adapt.AdaPT.compact(), layer_bits={"net.0": 6, "*": [3, 4]}))
    assert callback.controller.precisions["net.0.weight"].word_length == 6
    assert 3 <= callback.controller.precisions["net.2.weight"].word_length <= 4
    with pytest.raises(ValueError, match=r"layer_bits\['conv1'\] matches no layer: the layers are net.0.weight"):
        fit(Classifier(), precision(layer_bits={"conv1": 8}))
    with pytest.raises(ValueError, match="must lie between 2 and 32 bits"):
        precision(layer_bits={"net.0": 33})


@pytest.mark.parametrize("part", picked(["the whole", "a part"], "the whole"))
def test_compiled_modules(part):
    class Looks(Classifier):
        def training_step(self, batch, index):
            # Without self.log(), which does not compile.
            return F.cross_entropy(self(batch[0]), batch[1])

        validation_step = training_step

        def on_validation_batch_end(self, *args):
            for name, master in callback.controller.masters.items():
                expected = adapt.quantize(master, callback.controller.precisions[name])
                assert any(torch.equal(p, expected) for p in self.parameters())

        def on_train_batch_start(self, batch, index):
            # Compiled code calls no hooks, so what the parameters hold now is what its forward pass will see.
            forms = callback.controller.precisions.values()
            matrices = [p for p in self.parameters() if p.ndim > 1]
            assert all(is_on_grid(p, form) for p, form in zip(matrices, forms, strict=True))

    module, callback = Looks(), precision()
    if part == "a part":
        module.net = torch.compile(module.net, backend="eager")
    fit(torch.compile(module, backend="eager") if part == "the whole" else module, callback, val_check_interval=2)
    reference, _ = fit(Classifier(), val_check_interval=2)
    assert_same_run(callback.controller, reference.controller)


@pytest.mark.parametrize("mode", ["layer", "range"])
def test_activations_and_errors(mode):
    module = Classifier()
    callback = precision(activations=mode, quantize_errors=True)
    witness = Witness(module, callback)
    fit(module, callback, val_check_interval=2)
    witness.check("sanity_check", "train", "validate")
    assert callback.controller.activation_precisions
    assert_same_run(callback.controller, in_a_plain_loop(activations=mode, quantize_errors=True))


EXECUTION = {"execution": "bfloat16", "execution_backward": False}


class TestExecution:
    """In bfloat16, whose words the restless policy outgrows and comes back to."""

    def test_reaches_the_layers_while_their_words_fit(self):
        module, callback, seen = Classifier(), precision(**EXECUTION), []

        def look(layer, args, output):
            name = "net.0.weight" if layer is module.net[0] else "net.2.weight"
            fits = callback.controller.precisions[name].word_length <= 8
            seen.append((module.trainer.state.stage.value, fits, output.dtype))

        for index in (0, 2):
            module.net[index].register_forward_hook(look)
        module.register_forward_hook(lambda _, args, output: seen.append(("answer", False, output.dtype)))
        witness = Witness(module, callback)
        fit(module, callback, val_check_interval=2)
        witness.check("sanity_check", "train", "validate")
        for stage, fits, dtype in seen:
            assert dtype == (torch.bfloat16 if fits else torch.float32), stage
        fitted = {(stage, fits) for stage, fits, _ in seen}
        assert {("train", True), ("train", False), ("validate", True), ("validate", False)} <= fitted
        assert not any("forward" in part.__dict__ for part in module.modules())

    @pytest.mark.parametrize("averages", [False, pytest.param(True, marks=needs_averaging)], ids=["alone", "averaging"])
    def test_gives_the_run_of_the_plain_loop(self, averages):
        others = [EMAWeightAveraging(decay=0.9)] if averages else []
        callback, _ = fit(Classifier(), precision(**EXECUTION), *others, val_check_interval=2)
        assert_same_run(callback.controller, in_a_plain_loop(**EXECUTION))
        simulated, _ = fit(Classifier(), val_check_interval=2)
        assert not same(simulated.controller.masters, callback.controller.masters)

    def test_with_two_optimizers(self):
        module, callback = Adversaries(toggle=True), precision(**EXECUTION)
        witness = Witness(module, callback)
        fit(module, callback)
        assert not witness.problems
        assert len(callback.controllers) == 2
        assert not any("forward" in part.__dict__ for part in module.modules())


def test_data_modules_and_uneven_last_batches():
    class Data(lightning.LightningDataModule):
        def train_dataloader(self):
            return torch.utils.data.DataLoader(data(), 5, shuffle=True)

        def val_dataloader(self):
            return loader(2)

    module, callback = Classifier(), precision()
    witness = Witness(module, callback)
    trainer(callback).fit(module, datamodule=Data())
    witness.check("sanity_check", "train", "validate")
