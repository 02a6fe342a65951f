import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from adapt.perfmodel import Layer, activation_sizes, network_layers, operations


def test_kinds_work_and_flows():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8),
        nn.Conv2d(8, 16, 1),
        nn.Flatten(),
        nn.Linear(16 * 4 * 4, 5),
    )
    assert network_layers(model, torch.zeros(2, 3, 8, 8)) == (
        Layer("0.weight", "convolution", 27 * 8 * 64, 27 * 8, 3 * 64, 8 * 64),
        Layer("1.weight", "depthwise", 9 * 8 * 16, 9 * 8, 8 * 64, 8 * 16),
        Layer("2.weight", "pointwise", 8 * 16 * 16, 8 * 16, 8 * 16, 16 * 16),
        Layer("4.weight", "linear", 256 * 5, 256 * 5, 256, 5),
    )


def test_a_strided_pointwise_convolution_is_a_convolution():
    (layer,) = network_layers(nn.Conv2d(4, 8, 1, stride=2), torch.zeros(1, 4, 8, 8))
    assert layer.kind == "convolution"


def test_weights_of_one_module_share_its_flows():
    first, second = network_layers(nn.GRU(6, 4, batch_first=True), torch.zeros(1, 10, 6))
    assert (first.name, second.name) == ("weight_ih_l0", "weight_hh_l0")
    assert first.kind == second.kind == "linear"
    assert (first.inputs, first.outputs) == (second.inputs, second.outputs) == (30, 20)


def test_attention_embeddings_and_parametrised_weights():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(11, 8)
            self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
            self.head = weight_norm(nn.Linear(8, 3))
            self.unused = nn.Linear(4, 4)

        def forward(self, x):
            x = self.embed(x)
            return self.head(self.attend(x, x, x)[0])

    model, text = Model(), torch.zeros(1, 5, dtype=torch.long)
    layers = {layer.name: layer for layer in network_layers(model, text)}
    assert list(layers) == list(operations(model, text))
    assert layers["embed.weight"] == Layer("embed.weight", "lookup", 0, 88, 5, 40)
    for name in ("attend.in_proj_weight", "attend.out_proj.weight"):
        assert (layers[name].kind, layers[name].inputs, layers[name].outputs) == ("linear", 20, 20)
    assert layers["head.parametrizations.weight.original1"].outputs > 0
    assert layers["unused.weight"] == Layer("unused.weight", "lookup", 0, 16, 0, 0)


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, lambda m: torch.optim.swa_utils.AveragedModel(m)])
def test_wrapped_models_have_the_same_layers(wrap):
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    assert network_layers(wrap(model), torch.zeros(1, 4)) == network_layers(model, torch.zeros(1, 4))
    assert list(activation_sizes(wrap(model), torch.zeros(1, 4))) == ["0", "2"]
