"""Training in skorch's NeuralNet: `pytest -m clients tests/clients/test_skorch.py`."""

import pytest
import torch
from torch import nn

import adapt

skorch = pytest.importorskip("skorch")
pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]


def net(precision):
    torch.manual_seed(0)
    return skorch.NeuralNetClassifier(
        nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2), nn.LogSoftmax(-1)),
        optimizer=torch.optim.SGD, lr=0.1, optimizer__momentum=0.9, batch_size=16, iterator_train__shuffle=False,
        train_split=None, verbose=0, callbacks=[("precision", precision)], warm_start=True,
    )  # fmt: skip


def test_formats_move_and_saved_parameters_go_on_with_the_same_bits(tmp_path):
    from adapt.integrations.skorch import AdaptivePrecision

    x = torch.randn(256, 8, generator=torch.Generator().manual_seed(0)).numpy()
    y = (x[:, 0] > 0).astype("int64")
    first = net(precision := AdaptivePrecision(adapt.AdaPT.compact(), rounding="nearest"))
    first.set_params(max_epochs=10)
    first.fit(x, y)
    controller = precision.controller
    assert controller.step == 160
    assert len(set(map(tuple, controller.trace.word_length.tolist()))) > 1
    files = {"f_params": tmp_path / "params.pt", "f_optimizer": tmp_path / "optimizer.pt"}
    first.save_params(**files)
    second = net(precision := AdaptivePrecision(adapt.AdaPT.compact(), rounding="nearest"))
    second.initialize()
    precision.attach(second)
    second.load_params(**files)
    for one in (first, second):
        one.partial_fit(x, y)
    for name, value in first.module_.state_dict().items():
        assert torch.equal(value, second.module_.state_dict()[name]), name
