"""Loops that take the user's optimizer and loss: `pytest -m clients tests/clients/test_plain.py`."""

import copy

import pytest
import torch
from torch import nn

from tests.clients import documented
from tests.clients.witness import check, loader, network, nothing_misleading, rows, same
from tests.training import Witness

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def accelerated(epochs, folder, resume_at=None):
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model, criterion = network(), nn.CrossEntropyLoss()
    names = documented.run(
        "accelerate", accelerator=accelerator, model=model, optimizer=sgd(model), loader=loader(8), criterion=criterion
    )
    witness, optimizer = Witness(model, names["controller"]), names["optimizer"]
    if resume_at is not None:
        accelerator.load_state(folder / str(resume_at))
    for epoch in range(resume_at or 0, epochs):
        for inputs, targets in names["loader"]:
            with accelerator.accumulate(names["model"]):
                accelerator.backward(criterion(names["model"](inputs), targets))
                optimizer.step()
                optimizer.zero_grad()
        accelerator.save_state(folder / str(epoch + 1))
    return model, names["controller"], witness


def test_accelerate(tmp_path):
    with nothing_misleading():
        model, controller, witness = accelerated(4, tmp_path)
    assert controller.step == 4 * 16, "a step for every two micro-batches"
    check(controller, witness)
    resumed, again, _ = accelerated(4, tmp_path, resume_at=2)
    assert same(model, resumed)
    assert controller.precisions == again.precisions


def ignited(epochs, folder, resume_at=None):
    pytest.importorskip("ignite")
    from ignite.engine import Events, create_supervised_trainer
    from ignite.handlers import Checkpoint, DiskSaver

    model, criterion = network(), nn.CrossEntropyLoss()
    optimizer = sgd(model)
    names = documented.run(
        "ignite", model=model, optimizer=optimizer, criterion=criterion,
        create_supervised_trainer=create_supervised_trainer,
    )  # fmt: skip
    witness, trainer = Witness(model, names["controller"]), names["trainer"]
    keep = Checkpoint(names["saved"], DiskSaver(folder, require_empty=False), n_saved=None)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, keep)
    if resume_at is not None:
        saved = torch.load(folder / f"checkpoint_{resume_at * 16}.pt", weights_only=True)
        Checkpoint.load_objects(names["saved"], saved)
    trainer.run(loader(), max_epochs=epochs)
    return model, names["controller"], witness


def test_ignite(tmp_path):
    with nothing_misleading():
        model, controller, witness = ignited(4, tmp_path)
    check(controller, witness)
    resumed, again, _ = ignited(4, tmp_path, resume_at=2)
    assert again.step == controller.step == 64
    assert same(model, resumed)


def with_monai(epochs, folder, resume_at=None):
    pytest.importorskip("monai.engines")
    pytest.importorskip("ignite")
    from monai.data import DataLoader, Dataset
    from monai.engines import SupervisedTrainer
    from monai.handlers import CheckpointLoader, CheckpointSaver

    inputs, targets = rows().tensors
    data = Dataset([{"image": one, "label": label} for one, label in zip(inputs, targets, strict=True)])
    model, criterion = network(), nn.CrossEntropyLoss()
    optimizer = sgd(model)
    names = documented.run(
        "MONAI", network=model, optimizer=optimizer, criterion=criterion, epochs=epochs,
        loader=DataLoader(data, batch_size=16), SupervisedTrainer=SupervisedTrainer,
    )  # fmt: skip
    witness, trainer = Witness(model, names["controller"]), names["trainer"]
    saved = {"network": model, "optimizer": optimizer, "trainer": trainer}
    CheckpointSaver(str(folder), saved, save_interval=1, epoch_level=True).attach(trainer)
    if resume_at is not None:
        CheckpointLoader(str(folder / f"checkpoint_epoch={resume_at}.pt"), saved).attach(trainer)
    trainer.run()
    return model, names["controller"], witness


@pytest.mark.timeout(1200)  # importing it takes long
def test_monai(tmp_path):
    with nothing_misleading():
        model, controller, witness = with_monai(4, tmp_path)
    assert controller.step == 64
    check(controller, witness)
    resumed, again, _ = with_monai(4, tmp_path, resume_at=2)
    assert again.step == 64
    assert same(model, resumed)


class Convolved(nn.Module):
    """Two graph convolutions, and the mean over each graph."""

    def __init__(self):
        super().__init__()
        from torch_geometric.nn import GCNConv

        torch.manual_seed(0)
        self.first, self.second = GCNConv(6, 16), GCNConv(16, 2)

    def forward(self, x, edges, batch):
        from torch_geometric.nn import global_mean_pool

        return global_mean_pool(self.second(self.first(x, edges).relu(), edges), batch)


def graphs():
    from torch_geometric.data import Data
    from torch_geometric.loader import DataLoader

    generator = torch.Generator().manual_seed(0)
    made = []
    for index in range(128):
        x = torch.randn(5, 6, generator=generator) + index % 2
        edges = torch.randint(5, (2, 12), generator=generator)
        made.append(Data(x=x, edge_index=edges, y=torch.tensor([index % 2])))
    return DataLoader(made, 4)


def test_torch_geometric():
    pytest.importorskip("torch_geometric")
    model, criterion = Convolved(), nn.CrossEntropyLoss()
    optimizer = sgd(model)
    given = {"model": model, "optimizer": optimizer, "criterion": criterion}
    with nothing_misleading():
        controller = documented.run("torch_geometric", **given, loader=graphs())["controller"]
        assert set(controller.precisions) == {"first.lin.weight", "second.lin.weight"}
        saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
        witness = Witness(model, controller)
        learn(model, optimizer, criterion)
    check(controller)
    witness.check(controller.step - 32)

    resumed = Convolved()
    other = sgd(resumed)
    documented.run("torch_geometric", model=resumed, optimizer=other, criterion=criterion, loader=[])
    resumed.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    learn(resumed, other, criterion)
    assert same(model, resumed)


def learn(model, optimizer, criterion):
    """Train for an epoch."""
    for batch in graphs():
        optimizer.zero_grad()
        criterion(model(batch.x, batch.edge_index, batch.batch), batch.y).backward()
        optimizer.step()


@pytest.mark.timeout(1200)
def test_learned_widths_calibrate_with_graphs_and_with_dictionaries():
    pytest.importorskip("torch_geometric")
    monai = pytest.importorskip("monai.data")
    import lightning

    from adapt.learned import Budget
    from adapt.lightning import LearnedBitwidth

    class Module(lightning.LightningModule):
        def __init__(self, model, take):
            super().__init__()
            self.model, self.take = model, take

        def training_step(self, batch):
            inputs, targets = self.take(batch)
            return nn.functional.cross_entropy(self.model(*inputs), targets)

        def configure_optimizers(self):
            return sgd(self)

    inputs, targets = rows(64).tensors
    dictionaries = monai.Dataset([{"image": one, "label": label} for one, label in zip(inputs, targets, strict=True)])
    kinds = [
        (Module(Convolved(), lambda b: ((b.x, b.edge_index, b.batch), b.y)), graphs(), None),
        (
            Module(network(), lambda b: ((b["image"],), b["label"])),
            monai.DataLoader(dictionaries, batch_size=8),
            Budget(bits=6),
        ),
    ]
    for module, batches, activations in kinds:
        callback = LearnedBitwidth(Budget(bits=4), activations, calibration=2)
        lightning.Trainer(
            max_epochs=4, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[callback],
        ).fit(module, batches)  # fmt: skip
        assert callback.learner.is_calibrated
        assert callback.learner.size.weight_bits <= 4
