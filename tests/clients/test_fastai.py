"""Training in fastai's Learner: `pytest -m clients tests/clients/test_fastai.py`."""

from functools import partial

import pytest
import torch
from torch import nn

import adapt

fastai = pytest.importorskip("fastai")
pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]


def learner(folder, precision):
    import fastai.callback.progress  # noqa: F401  (gives Learner no_bar)
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from fastai.optimizer import OptimWrapper

    torch.manual_seed(0)
    x = torch.randn(256, 8)
    data = torch.utils.data.TensorDataset(x, (x[:, 0] > 0).long())
    loader = torch.utils.data.DataLoader(data, batch_size=16)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
    optimizer = partial(OptimWrapper, opt=partial(torch.optim.SGD, momentum=0.9))
    return Learner(
        DataLoaders(loader, loader), model, loss_func=nn.CrossEntropyLoss(), opt_func=optimizer, lr=0.1, path=folder,
        cbs=[precision],
    )  # fmt: skip


def test_formats_move_and_a_second_fit_goes_on(tmp_path):
    from adapt.integrations.fastai import AdaptivePrecisionCallback

    precision = AdaptivePrecisionCallback(adapt.AdaPT.compact(), rounding="nearest")
    learn = learner(tmp_path, precision)
    with learn.no_bar(), learn.no_logging():
        learn.fit(6, lr=0.1)
        controller = precision.controller
        assert controller.step == 96
        assert len(set(map(tuple, controller.trace.word_length.tolist()))) > 1
        learn.fit(1, lr=0.1)
    assert precision.controller is controller
    assert controller.step == 112
    with controller.evaluation_weights():
        form = controller.formats["0.weight"]
        assert torch.equal(form.quantize(learn.model[0].weight.detach()), learn.model[0].weight)
