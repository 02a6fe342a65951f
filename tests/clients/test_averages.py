"""Averages of the weights that other libraries keep are evaluated on the grid: `pytest -m clients`."""

import contextlib
import importlib.util
from pathlib import Path

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import adapt
from tests.training import RESTLESS, is_on_grid, loss_of, net

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]

DECAY = 0.5


class OfTorch:
    def __init__(self, model):
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))

    def update(self, model):
        self.average.update_parameters(model)

    @contextlib.contextmanager
    def shown(self, model):
        yield self.average


class OfTimm:
    def __init__(self, model):
        found = importlib.util.find_spec("timm") or pytest.skip("timm is not installed")
        # By its file, because the package wants a torchvision that fits torch.
        path = Path(found.origin).parent / "utils" / "model_ema.py"
        spec = importlib.util.spec_from_file_location("timm_model_ema", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self.average = module.ModelEmaV3(model, decay=DECAY)

    def update(self, model):
        self.average.update(model)

    @contextlib.contextmanager
    def shown(self, model):
        yield self.average


class OfTorchEma:
    def __init__(self, model):
        library = pytest.importorskip("torch_ema")
        self.average = library.ExponentialMovingAverage(model.parameters(), decay=DECAY, use_num_updates=False)

    def update(self, model):
        self.average.update()

    @contextlib.contextmanager
    def shown(self, model):
        with self.average.average_parameters():
            yield model


class OfDiffusers:
    def __init__(self, model):
        library = pytest.importorskip("diffusers.training_utils")
        self.average = library.EMAModel(model.parameters(), decay=DECAY, min_decay=DECAY)

    def update(self, model):
        self.average.step(model.parameters())

    @contextlib.contextmanager
    def shown(self, model):
        self.average.store(model.parameters())
        self.average.copy_to(model.parameters())
        yield model
        self.average.restore(model.parameters())


def trained(kind=None):
    """Masters after each of 12 steps, what the average of each epoch of 4 showed, and the controller."""
    model = net(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    controller = adapt.attach(optimizer, model, RESTLESS)
    with controller.master_weights():
        average = kind and kind(model)
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
            with controller.master_weights():
                average.update(model)
            if step % 4 == 3:
                with average.shown(model) as shown:
                    copy = controller.quantized(shown)
                copy.eval()(torch.zeros(1, 6))
                rounded.append((dict(controller.precisions), dict(copy.named_parameters())))
    return masters, rounded


@pytest.mark.parametrize("kind", [OfTorch, OfTimm, OfTorchEma, OfDiffusers])
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
