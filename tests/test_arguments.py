"""An invalid argument of an equation raises an error of one sentence that names it."""

import math

import numpy as np
import pytest
import torch

from adapt import AdaPT, Precision, arguments, switching

WEIGHTS = torch.linspace(-1, 1, 50)
NUMBERS = {
    "push_down": {"weights": WEIGHTS, "resolution": 60, "tolerance": 0.01},
    "diversity": {"sum_of_norms": 2.0, "norm_of_sum": 1.0},
    "log_diversity": {"diversity": 2.0},
    "suggest": {"diversity": 2.0, "fraction_length": 4, "strategy": "min"},
    "push_up": {"lowest": Precision(8, 4), "diversity": 2.0, "strategy": "min", "buffer_bits": 4},
    "next_lookback": {"lookback": 50.0, "diversity": 2.0, "bounds": (25, 100), "momentum": 0.33},
    "next_resolution": {
        "resolution": 60,
        "lookback": 50.0,
        "resolution_bounds": (50, 150),
        "lookback_bounds": (25, 100),
    },
    "next_strategy": {"strategy": "min", "loss": 1.0, "previous_losses": [1.0, 2.0]},
    "next_bits": {"bits": 4.5, "cost": 0.1, "allowed": 0.2},
    "cyclic_word_length": {"step": 3, "period": 12.5, "bits": (3, 8)},
    "switching_threshold": {"epoch": 3, "offset": 1.0, "amplitude": 1.5, "decay": 0.1},
}
EQUATIONS = {
    **NUMBERS,
    "divergence": {"weights": WEIGHTS, "quantized": WEIGHTS, "resolution": 60},
    "squared_error": {"weights": WEIGHTS, "precision": Precision(4, 2)},
}
NO_NUMBER = (None, "x", "1", [1.0], True, 1 + 2j, object(), torch.tensor([1, 2]))


@pytest.mark.parametrize("wrong", NO_NUMBER, ids=lambda wrong: type(wrong).__name__ + str(wrong)[:1])
@pytest.mark.parametrize(("name", "argument"), [(name, a) for name, given in EQUATIONS.items() for a in given])
def test_invalid_arguments_are_named(name, argument, wrong):
    if argument in ("weights", "quantized") and isinstance(wrong, torch.Tensor):
        wrong = torch.tensor([True])
    if (argument.endswith("bounds") or (name, argument) == ("cyclic_word_length", "bits")) and isinstance(
        wrong, torch.Tensor
    ):
        wrong = torch.tensor([1.5, 2.5])
    if argument == "previous_losses" and isinstance(wrong, list | torch.Tensor):
        wrong = ["x"]
    equation = getattr(switching, name)
    equation(**EQUATIONS[name])
    with pytest.raises((TypeError, ValueError), match=rf"^{argument} must be .*, got "):
        equation(**{**EQUATIONS[name], argument: wrong})


@pytest.mark.parametrize("kind", [np.float32, np.float64, torch.tensor, lambda value: torch.tensor(value).double()])
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_of_numpy_and_tensors_of_one_number_are_numbers(name, kind):
    given = NUMBERS[name]
    other = {argument: kind(value) if type(value) is float else value for argument, value in given.items()}
    expected, answer = (getattr(switching, name)(**values) for values in (given, other))
    assert type(answer) is type(expected)
    assert answer == pytest.approx(expected) if isinstance(expected, float) else answer == expected


def test_infinities_and_nan_are_numbers():
    assert math.isnan(arguments.number("x", math.nan))
    assert arguments.number("x", -math.inf) == -math.inf


def test_whole_numbers_say_what_they_count():
    assert arguments.whole("bits", np.int64(3)) == 3
    with pytest.raises(TypeError, match=r"x must be a whole number of bins, got 2\.5"):
        arguments.whole("x", 2.5, "bins")
    with pytest.raises(TypeError, match=r"x must be a whole number, got 2\.5"):
        arguments.whole("x", 2.5)


def test_flags_are_true_or_false():
    arguments.check_flags(AdaPT(), "normalize_gradients", "quantize_gradients")
    with pytest.raises(TypeError, match="buffer_bits must be True or False, got 4"):
        arguments.check_flags(AdaPT(), "buffer_bits")


def test_an_option_is_one_of_its_names():
    arguments.check_option("form", None, (None, "a", "b"))
    with pytest.raises(ValueError, match='form must be None, "a" or "b", got 1'):
        arguments.check_option("form", 1, (None, "a", "b"))
    with pytest.raises(ValueError, match=r'form must be "a" or "b", got array\(\[0\.\]\)'):
        arguments.check_option("form", np.zeros(1), ("a", "b"))
