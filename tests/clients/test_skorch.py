"""Training in skorch's NeuralNet: `pytest -m clients tests/clients/test_skorch.py`."""

import pytest
from torch import nn

import adapt
from tests.clients import documented
from tests.clients.witness import check, network, nothing_misleading, rows, same
from tests.training import Witness

skorch = pytest.importorskip("skorch")
pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]

OPTIONS = {
    "criterion": nn.CrossEntropyLoss, "lr": 0.1, "batch_size": 16, "iterator_train__shuffle": False,
    "train_split": None, "verbose": 0, "warm_start": True,
}  # fmt: skip


def net():
    names = documented.run("skorch", NeuralNetClassifier=skorch.NeuralNetClassifier, module=network())
    return names["net"].set_params(**OPTIONS, optimizer__momentum=0.9, callbacks__print_log=None), names["precision"]


def data():
    return [part.numpy() for part in rows().tensors]


def test_saved_parameters_go_on_with_the_same_bits(tmp_path):
    first, precision = net()
    first.initialize()
    precision.attach(first)
    witness = Witness(first.module_, precision.controller)
    first.set_params(max_epochs=10)
    with nothing_misleading():
        first.partial_fit(*data())
    controller = precision.controller
    assert controller.step == 160
    check(controller, witness)
    files = {"f_params": tmp_path / "params.pt", "f_optimizer": tmp_path / "optimizer.pt"}
    first.save_params(**files)
    second, precision = net()
    second.initialize()
    precision.attach(second)
    second.load_params(**files)
    for one in (first, second):
        one.partial_fit(*data(), epochs=1)
    assert same(first.module_, second.module_)


def test_the_optimizer_by_class_trains_groups_by_name():
    found = skorch.NeuralNetClassifier(
        network(), **OPTIONS, max_epochs=4, optimizer=adapt.ASGD, optimizer__policy=adapt.AdaPT.compact(bits=4),
        optimizer__param_groups=[("2.*", {"lr": 0.01})],
    )  # fmt: skip
    found.fit(*data())
    controller = found.optimizer_.controller
    assert controller.step == 64
    # skorch passes groups without names.
    assert set(controller.precisions) == {"parameter_1", "parameter_2"}
    assert [group["lr"] for group in found.optimizer_.param_groups] == [0.01, 0.1]
