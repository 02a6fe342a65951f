"""Training in fastai's Learner: `pytest -m clients tests/clients/test_fastai.py`."""

from functools import partial

import pytest
from torch import nn

from tests.clients import documented
from tests.clients.witness import check, loader, network, nothing_misleading, same
from tests.training import Witness

fastai = pytest.importorskip("fastai")
pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]


def learner(folder):
    import fastai.callback.progress  # noqa: F401  (gives Learner no_bar)
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from fastai.optimizer import OptimWrapper

    data, model = loader(), network()
    names = documented.run(
        "fastai", Learner=Learner, partial=partial, OptimWrapper=OptimWrapper, data=DataLoaders(data, data),
        model=model, criterion=nn.CrossEntropyLoss(),
    )  # fmt: skip
    names["learn"].path = folder
    return names["learn"], names["precision"]


def test_a_second_fit_goes_on_and_so_does_what_was_saved(tmp_path):
    learn, precision = learner(tmp_path)
    with learn.no_bar(), learn.no_logging(), nothing_misleading():
        learn.fit(1, lr=0.1)
        controller = precision.controller
        witness = Witness(learn.model, controller)
        learn.fit(5, lr=0.1)
        assert precision.controller is controller
        assert controller.step == 96
        check(controller)
        assert not witness.problems
        assert witness.passes > 80
        learn.save("half")
        learn.fit(1, lr=0.1)
    resumed, precision = learner(tmp_path)
    with resumed.no_bar(), resumed.no_logging():
        resumed.create_opt()
        precision.attach()
        resumed.load("half", with_opt=True)
        resumed.fit(1, lr=0.1)
    assert precision.controller.step == controller.step == 112
    assert same(learn.model, resumed.model)
