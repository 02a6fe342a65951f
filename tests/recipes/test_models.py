import pytest
import torch

from recipes.common.models import MODELS


@pytest.mark.parametrize(
    ("name", "shape", "classes", "parameters"),
    [
        ("resnet20", (3, 32, 32), 10, 269_722),
        ("resnet20", (3, 32, 32), 100, 275_572),
        ("mobilenet-v2", (3, 32, 32), 10, 2_236_682),
        ("mobilenet-v2-quarter", (3, 32, 32), 10, 162_602),
        ("alexnet", (3, 32, 32), 10, 4_361_034),
        ("alexnet", (3, 32, 32), 100, 4_453_284),
        ("lenet5", (3, 32, 32), 10, 62_006),
        ("lenet5", (1, 28, 28), 10, 61_706),
        ("mlp", (1, 28, 28), 10, 932_362),
        ("small-cnn", (1, 8, 8), 10, 20_602),
        ("gru", (1, 28, 28), 10, 61_962),
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
    scale = 0.5 if name.startswith(("resnet", "mobilenet", "gru")) else 2.0
    for parameter in MODELS[name](10, shape).parameters():
        if parameter.ndim > 1:
            fan_in = parameter[0].numel()
            assert parameter.abs().max() <= (3 * scale / fan_in) ** 0.5
            assert parameter.std().item() == pytest.approx((scale / fan_in) ** 0.5, rel=0.35)


def test_mobilenet_is_made_of_inverted_residuals():
    model = MODELS["mobilenet-v2-quarter"](10, (3, 32, 32))
    weights = [p for p in model.parameters() if p.ndim > 1]
    assert len(weights) == 2 + 50 + 1  # stem and head, three in each of 17 blocks but the first's two, the dense layer
    depthwise = [m for m in model.modules() if getattr(m, "groups", 1) > 1]
    assert len(depthwise) == 17
    assert all(m.groups == m.in_channels == m.out_channels for m in depthwise)
    assert model[:-3](torch.rand(2, 3, 32, 32)).shape == (2, 320, 4, 4)
    whole = MODELS["mobilenet-v2"](10, (3, 32, 32))
    assert sum(getattr(m, "shortcut", False) for m in whole) == 10


@pytest.mark.parametrize("name", ["resnet20", "mobilenet-v2-quarter", "alexnet", "lenet5"])
def test_channels_last_gives_the_same_answer(name):
    model = MODELS[name](10, (3, 32, 32)).eval()
    x = torch.rand(2, 3, 32, 32)
    expected = model(x)
    model.to(memory_format=torch.channels_last)
    assert torch.allclose(model(x.contiguous(memory_format=torch.channels_last)), expected, atol=1e-5)
