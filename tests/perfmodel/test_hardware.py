import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapt.perfmodel import (
    A100,
    T4,
    HardwareProfile,
    inference_speedup,
    profiled_inference_speedup,
    profiled_training_speedup,
    training_speedup,
)

EVERY_WIDTH = HardwareProfile("any width", {bits: 1000 / bits for bits in range(1, 33)})


def test_a_layer_runs_at_the_next_supported_width_up():
    bits = [[1, 2, 4, 5], [8, 9, 16, 17]]
    assert A100.width(bits).tolist() == [[1, 4, 4, 8], [8, 16, 16, 32]]
    assert A100.rate(bits).tolist() == [[4992, 1248, 1248, 624], [624, 312, 312, 19.5]]
    assert T4.rate(6.2) == 130


@given(st.lists(st.integers(1, 32), min_size=1, max_size=6), st.data())
def test_a_machine_with_every_width_gives_the_ideal_figures(word_length, data):
    counts = data.draw(st.lists(st.integers(1, 10**6), min_size=len(word_length), max_size=len(word_length)))
    ideal = inference_speedup(counts, word_length, 1.0)
    assert profiled_inference_speedup(counts, word_length, EVERY_WIDTH) == pytest.approx(ideal)
    ideal = training_speedup(counts, word_length, 1.0, batch_size=1)
    assert profiled_training_speedup(counts, word_length, EVERY_WIDTH) == pytest.approx(ideal)


@given(st.lists(st.integers(1, 32), min_size=1, max_size=6), st.sampled_from([A100, T4]))
def test_it_is_never_slower_than_float32(word_length, profile):
    counts = [100] * len(word_length)
    assert profiled_inference_speedup(counts, word_length, profile) >= 1
    assert 1 <= profiled_training_speedup(counts, word_length, profile) <= 1.5


def test_the_papers_rates():
    """AQT table 1: half the bits, twice the speed."""
    assert profiled_inference_speedup([10], [8], A100, other_bits=16) == 2
    assert profiled_inference_speedup([10], [4], A100, other_bits=16) == 4
    assert profiled_inference_speedup([10], [[32], [3]], A100, other_bits=8) == 2


def test_training_counts_every_row_and_the_backward_pass():
    profile = HardwareProfile("two widths", {8: 4.0, 32: 1.0})
    assert profiled_training_speedup([10], [[8], [9]], profile) == pytest.approx(3 / ((2.25 + 3) / 2))
    slow = profiled_training_speedup([10], [[8]], profile, backward_bits=8, backward_factor=1)
    assert slow == pytest.approx((1 + 0.25) / (0.25 + 0.25))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: HardwareProfile("none", {}), "rates of none must map bits to TOPS"),
        (lambda: HardwareProfile("text", {8: "fast"}), "rates of text must map bits to TOPS, all above 0"),
        (lambda: HardwareProfile("list", [8, 16]), "rates of list must map bits to TOPS, all above 0"),
        (lambda: HardwareProfile("still", {8: 0}), "rates of still must map bits to TOPS, all above 0"),
        (lambda: HardwareProfile("byte", {8: 1}).width(9), "bits on byte must be between 0 and 8, got 9"),
        (lambda: profiled_inference_speedup([1], [8], A100, other_bits=64), "bits on NVIDIA A100 must be between"),
        (lambda: profiled_inference_speedup([1, 2], [8, 8, 8], A100), r"must be \[rows, 2\]"),
        (
            lambda: profiled_training_speedup([1], [8], A100, backward_factor=-5),
            "backward_factor must be finite and at least 0, got -5",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("wrong", [None, "x", [8, 16]], ids=str)
@pytest.mark.parametrize("name", ["backward_factor", "backward_bits", "other_bits"])
def test_non_numbers_are_refused(name, wrong):
    with pytest.raises(TypeError, match=f"{name} must be a number, got"):
        profiled_training_speedup([1], [8], A100, **{name: wrong})


@pytest.mark.parametrize("speedup", [profiled_inference_speedup, profiled_training_speedup])
def test_other_profiles_are_refused(speedup):
    with pytest.raises(
        TypeError, match=r"profile must be a HardwareProfile, such as adapt\.perfmodel\.A100, got 'A100'"
    ):
        speedup([1], [8], "A100")


def test_profiles_are_fixed():
    with pytest.raises(AttributeError):
        A100.name = "other"
    assert np.isfinite(A100.rate(np.arange(1, 33))).all()
