import pytest

from adapt.perfmodel import memory_footprint, network_size


def test_footprint_is_weights_and_the_largest_activation():
    assert memory_footprint(1000, 64, 2, 4) == 2256


def test_the_papers_scaling_rule_keeps_the_footprint():
    """With activations as wide as weights, 32/b times more of both fit the same budget."""
    assert memory_footprint(8 * 1000, 8 * 64, 4, 4) == memory_footprint(1000, 64, 32, 32)


def test_network_size_in_kilobytes():
    weights, activations = ([1000, 3000], [4, 8]), ([500, 100], [8, 4])
    assert network_size(*weights, *activations) == (4000 + 24000 + 4000 + 400) / 8000
    assert network_size(*weights, *activations, activation_size="max") == (4000 + 24000 + 4000) / 8000
    assert network_size(8000, 1, [], []) == network_size(8000, 1, [], [], activation_size="max") == 1


def test_channels_may_differ():
    assert network_size([9, 9, 9], [2, 3, 4], 0, 0) == 81 / 8000


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: memory_footprint(-1, 64, 2, 4), "parameters must be finite and at least 0, got -1"),
        (lambda: memory_footprint(1, 64, 2, -4), "activation_bits must be finite and at least 0, got -4"),
        (lambda: network_size(1, 1, -5, 1), "activations must be finite and at least 0, got -5"),
        (lambda: network_size(1, 1, 1, 1, activation_size="mean"), 'activation_size must be "sum" or "max"'),
        (
            lambda: network_size([1, 2], [1, 2, 3], 1, 1),
            r"numel and weight_bits must have shapes that broadcast, got the shapes \[2\] and \[3\]",
        ),
        (
            lambda: network_size(1, 1, [[1], [2]], [[1, 2, 3]] * 3),
            r"activations and activation_bits must have shapes that broadcast, got the shapes \[2, 1\] and \[3, 3\]",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
