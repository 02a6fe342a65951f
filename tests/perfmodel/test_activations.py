from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from adapt.perfmodel import activation_sizes
from recipes.common.models import MODELS


def test_lenet5_outputs():
    sizes = activation_sizes(MODELS["lenet5"](10, (1, 28, 28)), torch.rand(3, 1, 28, 28))
    assert sizes == {"0": 6 * 28 * 28, "3": 16 * 10 * 10, "7": 120, "9": 84, "11": 10}


def test_layers_that_return_more_than_activations():
    model = nn.LSTM(3, 5, batch_first=True)
    assert activation_sizes(model, torch.rand(2, 7, 3)) == {"": 7 * 5}
    packed = nn.utils.rnn.pack_sequence([torch.rand(9, 3), torch.rand(5, 3)])
    assert activation_sizes(model, packed) == {"": 7 * 5}
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    assert activation_sizes(attention, *[torch.rand(2, 3, 8)] * 3)[""] == 3 * 8


def test_the_largest_of_several_calls_counts_and_unused_layers_do_not():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(self.layer(x)[:, :2])

    assert activation_sizes(Twice(), torch.rand(2, 5, 4)) == {"layer": 20}


def test_a_layer_with_a_computed_weight_counts_its_output_and_not_its_weight():
    model = nn.Sequential(nn.Linear(3, 5), parametrizations.weight_norm(nn.Linear(5, 4)))
    assert activation_sizes(model, torch.rand(2, 3)) == {"0": 5, "1": 4}


def test_a_module_of_that_name_keeps_it():
    averaged = torch.optim.swa_utils.AveragedModel(nn.Linear(3, 4))
    assert activation_sizes(averaged, torch.rand(2, 3)) == {"": 4}
    model = nn.Sequential(OrderedDict(module=nn.Sequential(nn.Linear(3, 5)), last=nn.Linear(5, 4)))
    assert activation_sizes(model, torch.rand(2, 3)) == {"module.0": 5, "last": 4}


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="example_inputs is empty"):
        activation_sizes(nn.Linear(3, 4))
