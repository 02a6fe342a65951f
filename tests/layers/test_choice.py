"""Names of parameters, and who follows whom; `test_attach.py` has refusals."""

import pytest
import torch
from torch import nn

import adapt
from adapt.layers import choice, naming


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
    assert naming.plain_name(name) == plain


def test_biases_and_norms_follow_the_layer_before_them():
    model = nn.Sequential(
        nn.BatchNorm1d(4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4, bias=False), nn.Linear(4, 2)
    )
    model[4].bias.requires_grad_(False)
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.SGD(parameters.values(), lr=0.1)
    layers = ["1.weight", "3.weight", "4.weight"]
    found = choice.followers(parameters, layers, optimizer)
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
        assert choice.is_matrix("weight", torch.zeros(shape)) is answer


def test_an_attribute_called_module_keeps_its_name():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.module, self.weight = nn.Linear(2, 2), nn.Parameter(torch.zeros(2, 2))

    assert list(naming.named(Wrapped())) == ["weight", "module.weight", "module.bias"]
    assert list(naming.named(nn.DataParallel(nn.Linear(2, 2)))) == ["weight", "bias"]
    assert naming.plain_names(["module.a", "b"]) == {"module.a": "module.a", "b": "b"}


def test_layers_that_share_memory_are_refused():
    encoder, decoder = nn.Linear(6, 4, bias=False), nn.Linear(4, 6, bias=False)
    decoder.weight.data = encoder.weight.data.t()
    with pytest.raises(ValueError, match=r"0\.weight and 1\.weight share memory, but each would get a master"):
        attach_to(nn.Sequential(encoder, decoder))
    both = torch.zeros(20)
    for layer, piece in ((encoder, both[:12]), (decoder, both[8:20])):
        layer.weight = nn.Parameter(piece.view(3, 4))
    with pytest.raises(ValueError, match="share memory"):
        attach_to(nn.Sequential(encoder, decoder))


def test_layers_side_by_side_in_one_memory_are_two():
    both, first, second = torch.zeros(24), nn.Linear(4, 3), nn.Linear(4, 3)
    first.weight, second.weight = nn.Parameter(both[:12].view(3, 4)), nn.Parameter(both[12:].view(3, 4))
    assert len(attach_to(nn.Sequential(first, second)).layers) == 2


def attach_to(model):
    return adapt.attach(torch.optim.SGD(model.parameters(), lr=0.1), model, adapt.Fixed(adapt.Precision(8, 4)))
