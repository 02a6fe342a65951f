import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from adapt.perfmodel import multiplication_cost, network_cost, operations, weight_memory


def test_the_papers_coefficients():
    assert multiplication_cost([16, 8, 4]).tolist() == [16, 8, 4]
    assert multiplication_cost([16, 8, 4], model="quadratic").tolist() == [16, 4, 1]


@given(st.floats(1, 32), st.floats(1, 32))
def test_mixed_pairs_are_symmetric_and_between_the_pure_ones(a, b):
    for model in ("linear", "quadratic"):
        cost = multiplication_cost(a, b, model=model)
        assert cost == multiplication_cost(b, a, model=model)
        low, high = (multiplication_cost(x, model=model) for x in sorted((a, b)))
        assert low <= cost <= high * (1 + 1e-12)
    assert multiplication_cost(a, b) == max(a, b)
    assert multiplication_cost(a, b, model="quadratic") == a * b / 16


def test_layers_cost_their_multiplications():
    layer = nn.Conv2d(3, 8, 3, stride=2, padding=1)
    counts = operations(layer, torch.rand(2, 3, 9, 9))
    assert network_cost(counts, 4, batch_size=64) == 64 * 9 * 25 * 3 * 8 * 4
    assert network_cost(operations(nn.Linear(10, 5), torch.rand(2, 10)), 16, batch_size=64) == 64 * 50 * 16


def test_a_network_costs_the_sum_of_its_layers():
    assert network_cost([10, 20], [8, 4]) == 160
    assert network_cost([10, 20], [8, 4], model="quadratic") == 60
    assert network_cost([10, 20], [8, 4], 8, model="quadratic") == 10 * 4 + 20 * 2
    assert network_cost({"a": 10, "b": 20}, 16, 4, batch_size=3) == 3 * 30 * 16


def test_weight_memory_by_layer_and_by_channel():
    assert weight_memory([100, 10], [4, 8]) == 480
    assert weight_memory(9, np.array([[2, 3, 4]])) == 81


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: multiplication_cost(0), "weight_bits must be above 0"),
        (lambda: multiplication_cost(8, -1), "activation_bits must be finite and at least 0"),
        (lambda: multiplication_cost(8, model="cubic"), 'model must be "linear" or "quadratic", got \'cubic\''),
        (lambda: network_cost([1, 2], [8, 8, 8]), "must be one number or 2, one per layer"),
        (lambda: weight_memory([1, -2], 8), "numel must be finite and at least 0, got -2"),
        (
            lambda: weight_memory([1, 2], [1, 2, 3]),
            r"numel and weight_bits must have shapes that broadcast, got the shapes \[2\] and \[3\]",
        ),
        (
            lambda: multiplication_cost([1, 2], [1, 2, 3]),
            r"weight_bits and activation_bits must have shapes that broadcast, got the shapes \[2\] and \[3\]",
        ),
        (lambda: network_cost([1, 2], 8, batch_size=0), "batch_size must be at least 1, got 0"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
