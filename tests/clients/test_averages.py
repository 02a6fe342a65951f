"""Averages of the weights that other libraries keep are evaluated on the grid: `pytest -m clients`."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import adapt
from tests.clients import documented
from tests.training import RESTLESS, is_on_grid, loss_of, net

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]

DECAY = 0.5


def of_torch(model):
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))


def of_timm(model):
    found = importlib.util.find_spec("timm") or pytest.skip("timm is not installed")
    # By its file, because the package wants a torchvision that fits torch.
    path = Path(found.origin).parent / "utils" / "model_ema.py"
    spec = importlib.util.spec_from_file_location("timm_model_ema", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ModelEmaV3(model, decay=DECAY)


def of_torch_ema(model):
    library = pytest.importorskip("torch_ema")
    return library.ExponentialMovingAverage(model.parameters(), decay=DECAY, use_num_updates=False)


def of_diffusers(model):
    library = pytest.importorskip("diffusers.training_utils")
    return library.EMAModel(model.parameters(), decay=DECAY, min_decay=DECAY)


KINDS = {"torch": of_torch, "timm": of_timm, "torch_ema": of_torch_ema, "diffusers": of_diffusers}


def trained(kind=None):
    """Masters after each of 12 steps, and the formats and parameters that the average showed after each."""
    model = net(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    controller = adapt.attach(optimizer, model, RESTLESS)
    with controller.master_weights():
        average = kind and KINDS[kind](model)
    masters, rounded = [], []
    for step in range(12):
        model.train()
        optimizer.zero_grad()
        loss = loss_of(model, step)
        loss.backward()
        controller.observe(loss)
        optimizer.step()
        masters.append({name: master.clone() for name, master in controller.masters.items()})
        if average:
            names = {"average": average, "ema": average, "model": model, "controller": controller}
            copy = documented.run(kind, **names)["rounded"]
            copy.eval()(torch.zeros(1, 6))
            rounded.append((dict(controller.precisions), dict(copy.named_parameters())))
    return masters, rounded


@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_of_the_masters_is_evaluated_on_the_grid_and_training_goes_on(kind):
    alone, _ = trained()
    masters, rounded = trained(kind)
    for ours, theirs in zip(masters, alone, strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs), "averaging disturbs the run"
    precisions, parameters = rounded[-1]
    for name, precision in precisions.items():
        weight = next(parameter for found, parameter in parameters.items() if found.endswith(name))
        assert is_on_grid(weight, precision)
        mean = masters[0][name]
        for later in masters[1:]:
            mean = mean.lerp(later[name], 1 - DECAY)
        # The first values of the mean differ by library, which is 2^−11 of it by now.
        assert (weight - mean).abs().max() <= precision.step
