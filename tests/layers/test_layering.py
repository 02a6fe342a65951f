"""Names of parameters, and who follows whom; `test_attach.py` has refusals."""

import pytest
import torch
from torch import nn

from adapt.layers import layering


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("0.weight", "0.weight"),
        ("_orig_mod.0.weight", "0.weight"),
        ("module.0.weight", "0.weight"),
        ("module._orig_mod.0.weight", "0.weight"),
        ("_orig_mod.module.0.weight", "0.weight"),
        ("block._orig_mod.weight", "block.weight"),
        ("body.module.weight", "body.module.weight"),
    ],
)
def test_plain_names(name, plain):
    assert layering.plain_name(name) == plain


def test_biases_and_norms_follow_the_layer_before_them():
    model = nn.Sequential(
        nn.BatchNorm1d(4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4, bias=False), nn.Linear(4, 2)
    )
    model[4].bias.requires_grad_(False)
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.SGD(parameters.values(), lr=0.1)
    layers = ["1.weight", "3.weight", "4.weight"]
    found = layering.followers(parameters, layers, optimizer)
    assert {name: layers[leader] for name, (_, leader) in found.items()} == {
        "0.weight": "1.weight",
        "0.bias": "1.weight",
        "1.bias": "1.weight",
        "2.weight": "1.weight",
        "2.bias": "1.weight",
    }
    assert all(parameter is parameters[name] for name, (parameter, _) in found.items())


def test_matrices_are_layers():
    for shape, answer in (((), False), ((3,), False), ((3, 3), True), ((3, 3, 1, 1), True)):
        assert layering.is_matrix("weight", torch.zeros(shape)) is answer
