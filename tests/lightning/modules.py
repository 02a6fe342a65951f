"""Small LightningModules, loaders that resume, and a witness of the weights that every forward pass saw."""

import collections
import gc
import logging
import warnings
import weakref

import lightning
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import adapt
from adapt.engine import registry
from adapt.layers.naming import plain_name
from adapt.lightning import AdaptivePrecision
from tests.training import is_on_grid

RESTLESS = adapt.AdaPT(lookback=(2, 4), resolution=(8, 16))
"""The paper's rules at a pace at which a few steps see several switches."""

BATCHES = 6

RELEASE = tuple(int(part) for part in lightning.__version__.split(".")[:2])
"""Of Lightning. Before 2.6 a fit after a finder of batch sizes is too short, with or without adapt; before 2.5 one
after a finder of learning rates is too, and resuming in the middle of an epoch of accumulated steps is not exact."""

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", message=".*does not have many workers.*")


def data(batches=BATCHES, size=4):
    """Inputs [batches·size, 6] and targets of three classes."""
    generator = torch.Generator().manual_seed(batches * size)
    inputs = torch.randn(batches * size, 6, generator=generator)
    return TensorDataset(inputs, torch.randint(3, (len(inputs),), generator=generator))


def loader(batches=BATCHES, size=4):
    """The batches in their order."""
    return DataLoader(data(batches, size), size)


class ResumableLoader:
    """A shuffled loader that can go on in the middle of an epoch, as Lightning asks for by these two methods."""

    def __init__(self, batches=BATCHES, size=4):
        self.data, self.size, self.epoch, self.next = data(batches, size), size, 0, 0

    def __len__(self):
        return len(self.data) // self.size

    def __iter__(self):
        order = torch.randperm(len(self.data), generator=torch.Generator().manual_seed(self.epoch)).view(-1, self.size)
        for position in range(self.next, len(order)):
            # Before the batch is out: who knows the length does not ask for what comes after the last.
            last = position + 1 == len(order)
            self.epoch, self.next = (self.epoch + 1, 0) if last else (self.epoch, position + 1)
            yield self.data[order[position]]

    def state_dict(self):
        return {"epoch": self.epoch, "next": self.next}

    def load_state_dict(self, state):
        self.epoch, self.next = state["epoch"], state["next"]


def sgd(module):
    return torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)


class Classifier(lightning.LightningModule):
    """Two layers. `configure` answers what configure_optimizers should."""

    def __init__(self, configure=sgd, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
        self.configure = configure
        self.batch_size, self.lr = 4, 0.05

    def forward(self, inputs):
        return self.net(inputs)

    def training_step(self, batch, index):
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, index):
        self.log("validation_loss", F.cross_entropy(self(batch[0]), batch[1]))

    test_step = validation_step

    def configure_optimizers(self):
        return self.configure(self)


class Adversaries(lightning.LightningModule):
    """A generator and a discriminator, each with an optimizer of its own; `toggle` freezes the other meanwhile."""

    def __init__(self, toggle=False):
        super().__init__()
        torch.manual_seed(0)
        self.automatic_optimization, self.toggle = False, toggle
        self.generator, self.discriminator = nn.Linear(6, 6), nn.Linear(6, 1)
        self.shown = {"generator": [], "discriminator": []}

    def forward(self, inputs):
        return self.discriminator(self.generator(inputs))

    def update(self, name, optimizer, loss):
        self.shown[name].append(float(loss.detach()))
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

    def training_step(self, batch, index):
        generator, discriminator = self.optimizers()
        if self.toggle:
            self.toggle_optimizer(generator)
        loss = F.softplus(-self(batch[0])).mean()
        self.update("generator", generator, loss)
        if self.toggle:
            self.untoggle_optimizer(generator)
            self.toggle_optimizer(discriminator)
        fake = self.discriminator(self.generator(batch[0]).detach())
        loss = F.softplus(fake).mean() + F.softplus(-self.discriminator(batch[0])).mean()
        self.update("discriminator", discriminator, loss)
        if self.toggle:
            self.untoggle_optimizer(discriminator)

    def validation_step(self, batch, index):
        self.log("score", self(batch[0]).mean())

    test_step = validation_step

    def configure_optimizers(self):
        return [
            torch.optim.SGD(self.generator.parameters(), lr=0.05),
            torch.optim.AdamW(self.discriminator.parameters(), lr=0.01),
        ]


class Scaled(MixedPrecision):
    """Half precision with a scaler, which Lightning's own settings reserve for a GPU."""

    def __init__(self, scale=2.0**10):
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=3)
        super().__init__("16-mixed", "cpu", scaler)

    def autocast_context_manager(self):
        return torch.autocast("cpu", dtype=torch.bfloat16)


def trainer(*callbacks, **options):
    """A quiet trainer for the CPU."""
    options = {
        "max_epochs": 3,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        **options,
    }
    return lightning.Trainer(accelerator="cpu", callbacks=list(callbacks), **options)


class WithData(Classifier):
    """Brings its own loader, whose batches a finder can change."""

    def train_dataloader(self):
        return loader(BATCHES * 4 // self.batch_size, self.batch_size)

    def val_dataloader(self):
        return loader(2, self.batch_size)


def precision(policy=RESTLESS, **options):
    """The callback, with rules that switch within a few steps."""
    return AdaptivePrecision(policy, **options)


def fit(module, callback=None, *others, loaders=None, ckpt_path=None, **options):
    """Train with validation; answers callback and trainer."""
    callback = precision() if callback is None else callback
    run = trainer(callback, *others, **options)
    run.fit(module, *(loaders or (loader(), loader(2))), ckpt_path=ckpt_path)
    return callback, run


class Witness:
    """Holds every forward pass of a LightningModule's layers against the grid, and counts them by stage.

    Outside training a layer must show its master rounded to nearest.
    """

    def __init__(self, module, callback):
        self.module, self.callback = module, callback
        self.passes, self.problems = collections.Counter(), []
        # Not on losses, which darts pickles.
        for part in [part for part in module.modules() if hasattr(part, "weight")]:
            # After the pass: no hook that is registered later can still change what it saw.
            part.register_forward_hook(self.look)

    def look(self, part, args, output):
        if part.weight.ndim >= 2 if isinstance(getattr(part, "weight", None), torch.Tensor) else False:
            stage = self.module.trainer.state.stage
            self.passes["test" if stage is None else stage.value] += 1
            self.judge(part.weight, stage is not None and stage.value == "train")

    def judge(self, weight, training):
        name = plain_name(next(name for name, p in self.module.named_parameters() if p is weight))
        owners = [controller for controller in self.callback.controllers if name in controller.masters]
        if not owners:
            self.problems.append(f"{name} without a master")
            return
        form, master = owners[0].precisions[name], owners[0].masters[name]
        if not is_on_grid(weight, form):
            self.problems.append(f"{name} off the grid {form}")
        # The grids of longer words are finer than float32 itself where weights are not small.
        if form.word_length <= 24 and is_on_grid(master, form):
            self.problems.append(f"the master of {name} is on the grid")
        if not training and not torch.equal(weight, adapt.quantize(master, form)):
            self.problems.append(f"{name} not rounded to nearest outside training")

    def check(self, *stages):
        assert not self.problems, self.problems[:5]
        assert set(self.passes) == set(stages), self.passes


def weights(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def same(found, expected):
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def in_a_plain_loop(**options):
    """The controller of three epochs without Lightning, with these options."""
    module = Classifier()
    optimizer = sgd(module)
    controller = adapt.attach(optimizer, module, RESTLESS, **options)
    for _ in range(3):
        for inputs, targets in loader():
            optimizer.zero_grad()
            loss = F.cross_entropy(module(inputs), targets)
            loss.backward()
            controller.observe(loss)
            optimizer.step()
    return controller


def assert_same_run(first, second):
    """Two controllers came to the same masters, formats and trace, bit for bit."""
    assert first.precisions == second.precisions
    assert same(first.masters, second.masters)
    one, other = first.trace.state_dict(), second.trace.state_dict()
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(value, other[name], rtol=0, atol=0, equal_nan=True)
        else:
            assert value == other[name], name


_attached_before = weakref.WeakSet()


def remember_attached():
    """Note the controllers that are attached now: what an earlier test left behind is none of the next one's."""
    gc.collect()
    _attached_before.clear()
    _attached_before.update(registry.engines())


def assert_nothing_attached():
    """No controller is attached that was not when the test began."""
    gc.collect()
    assert not set(registry.engines()) - set(_attached_before)
