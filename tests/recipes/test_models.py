import pytest
import torch

from recipes.common.models import MODELS


@pytest.mark.parametrize(
    ("name", "shape", "classes", "parameters"),
    [
        ("resnet20", (3, 32, 32), 10, 269_722),
        ("resnet20", (3, 32, 32), 100, 275_572),
        ("alexnet", (3, 32, 32), 10, 4_361_034),
        ("alexnet", (3, 32, 32), 100, 4_453_284),
        ("lenet5", (3, 32, 32), 10, 62_006),
        ("lenet5", (1, 28, 28), 10, 61_706),
        ("mlp", (1, 28, 28), 10, 932_362),
        ("small-cnn", (1, 8, 8), 10, 20_602),
    ],
)
def test_networks_have_the_size_they_state(name, shape, classes, parameters):
    model = MODELS[name](classes, shape)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model(torch.rand(2, *shape)).shape == (2, classes)


def test_resnet20_has_the_depth_of_its_name():
    assert sum(p.ndim > 1 for p in MODELS["resnet20"](10, (3, 32, 32)).parameters()) == 20


@pytest.mark.parametrize("name", MODELS)
def test_weights_are_initialised_by_tnvs(name):
    shape = {"small-cnn": (1, 8, 8), "mlp": (1, 28, 28)}.get(name, (3, 32, 32))
    scale = 0.5 if name == "resnet20" else 2.0
    for parameter in MODELS[name](10, shape).parameters():
        if parameter.ndim > 1:
            fan_in = parameter[0].numel()
            assert parameter.abs().max() <= (3 * scale / fan_in) ** 0.5
            assert parameter.std().item() == pytest.approx((scale / fan_in) ** 0.5, rel=0.35)


@pytest.mark.parametrize("name", ["resnet20", "alexnet", "lenet5"])
def test_channels_last_gives_the_same_answer(name):
    model = MODELS[name](10, (3, 32, 32)).eval()
    x = torch.rand(2, 3, 32, 32)
    expected = model(x)
    model.to(memory_format=torch.channels_last)
    assert torch.allclose(model(x.contiguous(memory_format=torch.channels_last)), expected, atol=1e-5)
