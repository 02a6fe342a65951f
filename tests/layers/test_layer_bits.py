"""Bits by pattern: which pattern decides on which layer, and which patterns are refused."""

import pytest

from adapt.layers.layer_bits import bounds_of, check_patterns, checked

NAMES = ["conv1.weight", "layer1.0.conv1.weight", "layer1.0.conv2.weight", "head.weight"]


def of(patterns):
    return bounds_of(checked(patterns, shortest=2, longest=32), NAMES, default=(2, 32))


def test_a_pattern_names_a_parameter_or_a_module_that_holds_it():
    assert of({"conv1": 8}) == ((8, 8), (2, 32), (2, 32), (2, 32))
    assert of({"conv1.weight": 8, "head*": (6, 8)}) == ((8, 8), (2, 32), (2, 32), (6, 8))
    assert of({"layer1": [3, 4]}) == ((2, 32), (3, 4), (3, 4), (2, 32))
    assert of({"*conv1*": 5}) == ((5, 5), (5, 5), (2, 32), (2, 32))
    assert of({"Conv1": 8}) == ((2, 32),) * 4


def test_the_first_pattern_that_matches_decides():
    assert of({"layer1.0.conv2": 6, "layer1": 4, "*": 3}) == ((3, 3), (4, 4), (6, 6), (3, 3))


def test_a_pattern_that_matches_nothing_is_refused_with_the_names_of_the_layers():
    with pytest.raises(ValueError, match=r"layer_bits\['cnov1'\] matches no layer: the layers are conv1.weight, l"):
        check_patterns({"cnov1": 8}, NAMES)
    with pytest.raises(ValueError, match=r"and 60 more$"):
        check_patterns({"head": 8}, [f"{i}.weight" for i in range(100)])


def test_a_pattern_behind_a_wider_one_is_refused():
    check_patterns({"conv1": 8, "*": 4}, NAMES)
    with pytest.raises(ValueError, match=r"layer_bits\['conv1'\] has no effect, because '\*' comes first"):
        check_patterns({"*": 4, "conv1": 8}, NAMES)


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        (8, TypeError, "layer_bits must map patterns to bits"),
        ({1: 8}, TypeError, "layer_bits must map patterns to bits"),
        ({"a": "8"}, TypeError, r"layer_bits\['a'\] must be two whole numbers"),
        ({"a": True}, TypeError, r"layer_bits\['a'\] must be two whole numbers"),
        ({"a": 8.0}, TypeError, r"layer_bits\['a'\] must be two whole numbers"),
        ({"a": (8, 6)}, ValueError, r"layer_bits\['a'\] must be \(lower, upper\)"),
        ({"a": 1}, ValueError, "must lie between 2 and 32 bits, got 1"),
        ({"a": (2, 33)}, ValueError, "must lie between 2 and 32 bits"),
    ],
)
def test_bits_that_are_none_are_refused(given, kind, message):
    with pytest.raises(kind, match=message):
        checked(given, shortest=2, longest=32)
